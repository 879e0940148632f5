"""Checked access to the JSON that the verbs write: a wrong or missing value is a DataError that says where it is."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrc.errors import DataError

REMEDY = "Run the verb that writes this file again"


@dataclass(frozen=True)
class Fields:
    """A JSON object and the place it was read from; each method returns one value, checked."""

    values: dict[str, Any]
    """The keys of the object."""
    where: str
    """File, with the line or the path of keys inside it; the first words of every error."""

    def text(self, key: str) -> str:
        """Return a string."""
        value = self._value(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a string, or None for null or a missing key."""
        return None if self.values.get(key) is None else self.text(key)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def count(self, key: str) -> int:
        """Return a whole number of at least 0."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(key, "a whole number of at least 0", value)
        return value

    def optional_count(self, key: str) -> int | None:
        """Return a whole number of at least 0, or None for null or a missing key."""
        return None if self.values.get(key) is None else self.count(key)

    def number(self, key: str) -> float | None:
        """Return a finite number, or None for null; the key must be there."""
        value = self._value(key)
        return None if value is None else self._finite(key, value)

    def numbers(self, key: str) -> tuple[float | None, ...]:
        """Return a list of finite numbers, None for each null in it."""
        value = self._value(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list of numbers", value)
        return tuple(None if entry is None else self._finite(key, entry) for entry in value)

    def optional_numbers(self, key: str) -> tuple[float | None, ...] | None:
        """Return a list as `numbers` does, or None for null or a missing key."""
        return None if self.values.get(key) is None else self.numbers(key)

    def section(self, key: str) -> "Fields":
        """Return an object."""
        value = self._value(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object", value)
        return Fields(value, f"{self.where}, under {key!r}")

    def optional_section(self, key: str) -> "Fields | None":
        """Return an object, or None for null or a missing key."""
        return None if self.values.get(key) is None else self.section(key)

    def sections(self, key: str) -> list["Fields"]:
        """Return a list of objects."""
        value = self._value(key)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self._wrong(key, "a list of objects", value)
        return [Fields(entry, f"{self.where}, under {key!r}[{index}]") for index, entry in enumerate(value)]

    def texts(self) -> dict[str, str]:
        """Return the whole object, every value a string; a null is left out."""
        return {key: self.text(key) for key, value in self.values.items() if value is not None}

    def _value(self, key: str) -> Any:
        if key not in self.values:
            raise DataError(f"{self.where}: the key {key!r} must be there, but is not. {REMEDY}.")
        return self.values[key]

    def _finite(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong(key, "a finite number", value)
        return number

    def _wrong(self, key: str, expected: str, found: Any) -> DataError:
        return DataError(f"{self.where}: {key!r} must be {expected}, found {_shortened(found)}. {REMEDY}.")


def _shortened(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def read_json(path: Path) -> Fields:
    """Read a file that holds one JSON object.

    Raises:
        DataError: The file can't be read or is damaged; the message names the file and the line.
    """
    return _parse(_read_text(path), path=path, first_line=1)


def read_json_lines(path: Path) -> Iterator[Fields]:
    """Yield the object on each line of a JSON lines file.

    Raises:
        DataError: The file can't be read or a line is damaged; the message names the file and the line.
    """
    lines = _read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    for line_number, line in enumerate(lines, start=1):
        yield _parse(line, path=path, first_line=line_number, where=f"{path}, line {line_number}")


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} must be a file that can be read, but: {error.strerror}.") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line_number = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line_number}: must be UTF-8 text, but is not. {REMEDY}.") from error


def _parse(text: str, *, path: Path, first_line: int, where: str | None = None) -> Fields:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line_number = first_line + error.lineno - 1
        raise DataError(f"{path}, line {line_number}: must be JSON, but {_reason(error, text)}. {REMEDY}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where or path}: must be JSON with finite numbers, but {error}. {REMEDY}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{where or path}: must hold a JSON object, found {_shortened(value)}. {REMEDY}.")
    return Fields(value, where or str(path))


def _reason(error: json.JSONDecodeError, text: str) -> str:
    if not text.strip():
        return "it is empty"
    if error.pos >= len(text.rstrip()):
        return "it ends in the middle"
    return f"column {error.colno} can't be read ({error.msg})"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")
