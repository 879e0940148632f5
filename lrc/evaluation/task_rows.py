"""The rows of a benchmark's local file, checked line by line before a model is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrc.data.rows import parse_row
from lrc.errors import DataError

TEXT = "a string"
TEXTS = "a list of strings"
WHOLE = "a whole number"
OPTIONS = "an object with the lists of strings `text` and `label`, equally long"

_ARC = {"question": TEXT, "choices": OPTIONS, "answerKey": TEXT}
FIELDS: Mapping[str, Mapping[str, str]] = {
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "logiqa": {"context": TEXT, "question": TEXT, "options": TEXTS, "label": TEXT},
    "commonsense_qa": _ARC,
    "piqa": {"goal": TEXT, "sol1": TEXT, "sol2": TEXT, "label": WHOLE},
    "winogrande": {"sentence": TEXT, "option1": TEXT, "option2": TEXT, "answer": TEXT},
    "boolq": {"passage": TEXT, "question": TEXT, "label": WHOLE},
    "sciq": {
        "question": TEXT,
        "support": TEXT,
        "correct_answer": TEXT,
        "distractor1": TEXT,
        "distractor2": TEXT,
        "distractor3": TEXT,
    },
    "mmlu": {"question": TEXT, "subject": TEXT, "choices": TEXTS, "answer": WHOLE},
    "gsm8k": {"question": TEXT, "answer": TEXT},
    "humaneval": {"prompt": TEXT, "test": TEXT, "entry_point": TEXT},
    "mbpp": {"text": TEXT, "test_list": TEXTS},
}
"""The fields that the stock task reads, and what each must be."""


def read_task_rows(path: Path, task: str) -> list[dict[str, Any]]:
    """Read a task's JSON lines.

    A task that FIELDS lists needs those fields; of any other, each row needs the fields of the first.

    Raises:
        DataError: The file can't be read or is empty, or a row lacks a field or has one of another kind; the message
            names file and line.
    """
    try:
        # not splitlines, which also breaks at U+0085, U+2028 and U+2029 inside a field
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a text file that can be read: {error}.") from error
    if lines == [""]:
        raise DataError(f"{path} must hold one row a line, but it is empty.")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        row = parse_row(line, where=f"{path}:{number}")
        wanted = FIELDS.get(task) or dict.fromkeys(rows[0] if rows else row)
        for field, kind in wanted.items():
            if field not in row or (kind is not None and row[field] is None):
                has = ", ".join(sorted(row)) or "none"
                raise DataError(f"{path}:{number}: a row of {task} must have the field {field!r}, but it has: {has}.")
            if kind is not None and not _is(kind, row[field]):
                raise DataError(f"{path}:{number}: {field!r} must be {kind}, found {json.dumps(row[field])[:60]}.")
        rows.append(row)
    return rows


def _is(kind: str, value: Any) -> bool:
    if kind == TEXT:
        return isinstance(value, str)
    if kind == WHOLE:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == TEXTS:
        return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)
    if not isinstance(value, dict):
        return False
    text, label = value.get("text"), value.get("label")
    return _is(TEXTS, text) and _is(TEXTS, label) and len(text or ()) == len(label or ())
