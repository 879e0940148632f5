"""JSON lines on disk, read by number: an index of line starts, one parsed row at a time, errors that name the line.

The published format is one `{"input_ids": [...], "data_cls": "general"}` a line; rows with `text` serve as raw text.
"""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrc.data.line_index import PREPARED, SUFFIX, line_starts
from lrc.errors import DataError

PACKED = (".parquet", ".arrow", ".gz", ".zst", ".zstd", ".bz2", ".xz", ".zip")
"""Endings of files that hold no plain lines."""


def parse_row(line: str | bytes, *, where: str) -> dict[str, Any]:
    """Parse one line; `where` is its file and number.

    Raises:
        DataError: The line is not a JSON object.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: the line must be a JSON object, but it is not: {error}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: the line must be a JSON object, found {type(value).__name__}.")
    return value


def resolve_files(source: str) -> list[Path]:
    """List the JSONL files that a file name, folder or glob stands for, sorted; a glob's index files left out.

    Raises:
        DataError: There is none.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
    elif path.is_file():
        files = [path]
    else:
        found = map(Path, glob.glob(source, recursive=True))
        files = sorted(path for path in found if path.is_file() and path.suffix != SUFFIX)
    if not files:
        prepared = " Run lrc prepare first." if path.name == "prepare" else f" {PREPARED}"
        raise DataError(
            f"Data must be a .jsonl file, a folder of them or a glob, but {source!r} matches no file.{prepared}"
        )
    packed = next((path for path in files if path.suffix in PACKED), None)
    if packed is not None:
        raise DataError(f"{packed} must be a file of plain JSON lines, found a {packed.suffix} file. {PREPARED}")
    return files


class JsonLines:
    """Rows of one or more JSONL files by number; of a large file, not even the line starts are held in memory."""

    def __init__(self, source: str) -> None:
        """Index the files of `source`.

        Raises:
            DataError: No file, an empty file, an empty line, or a last line that was cut off.
        """
        self.files = resolve_files(source)
        self._starts = [line_starts(path) for path in self.files]
        self._first = np.cumsum([0, *(len(starts) - 1 for starts in self._starts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(int(starts[-1]) for starts in self._starts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Parse every row in order.

        Raises:
            DataError: A line is not a JSON object.
        """
        row = 0
        for path in self.files:
            with path.open("rb") as handle:
                for line in handle:
                    yield parse_row(line, where=self.where(row))
                    row += 1

    def where(self, row: int) -> str:
        """Name a row for an error: `file:line`, lines from 1."""
        file = int(np.searchsorted(self._first, row, side="right")) - 1
        return f"{self.files[file]}:{row - int(self._first[file]) + 1}"

    def read(self, row: int) -> dict[str, Any]:
        """Parse one row.

        Raises:
            DataError: The line is not a JSON object.
        """
        file = int(np.searchsorted(self._first, row, side="right")) - 1
        inner = row - int(self._first[file])
        start, end = self._starts[file][inner : inner + 2]
        with self.files[file].open("rb") as handle:
            handle.seek(start)
            line = handle.read(end - start)
        return parse_row(line, where=self.where(row))
