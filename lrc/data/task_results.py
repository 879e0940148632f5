"""What a finished task of `lrc prepare` leaves beside its shard, and what other tasks and the last stage read of it."""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Finished(NamedTuple):
    """The counts of a finished task that other tasks ask for."""

    rows: int
    bad_rows: int
    tokens: int


def shard_name(task: int) -> str:
    """Name a task's shard."""
    return f"{task:05d}"


def result_path(folder: Path, task: int) -> Path:
    """Name the file that says that a task is done, and what became of its rows."""
    return folder / f"{shard_name(task)}.json"


def read_finished(folder: Path, task: int) -> Finished | None:
    """Return a task's counts, None if it is not done; each file is read once a process, for every later one asks."""
    path = result_path(folder, task)
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


@cache
def _read(path: Path, _written_ns: int) -> Finished:
    result = json.loads(path.read_text())
    return Finished(result["rows"], result["bad_rows"], result["tokens"])
