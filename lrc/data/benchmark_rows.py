"""The texts of benchmarks that training data must not hold: every string of every row of their files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lrc.data.source_files import SourceFile, list_files, on_this_machine
from lrc.data.source_rows import read_rows
from lrc.errors import DataError


def index_path(folder: Path) -> Path:
    """Name the file of the benchmarks' n-grams in the work folder."""
    return folder / "dedupe" / "benchmarks" / "benchmarks.index.hashes"


def list_benchmarks(paths: Sequence[str]) -> list[SourceFile]:
    """List the benchmarks' files.

    Raises:
        DataError: A path matches none.
    """
    return [file for path in paths for file in list_files(path)]


def benchmark_texts(paths: Sequence[str]) -> Iterator[str]:
    """Yield the strings of all rows, those inside lists and objects too.

    Raises:
        DataError: A row can't be read; of a benchmark, none may be missing.
    """
    for file in list_benchmarks(paths):
        with TemporaryDirectory() as folder, on_this_machine(file.path, Path(folder) / "benchmark") as local:
            for row in read_rows(local, name=file.path):
                if row.value is None:
                    raise DataError(f"{file.path}:{row.number}: a benchmark's row must be readable: {row.problem}.")
                yield from _strings(row.value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
