"""Rows of raw sources, streamed: JSON lines (plain, .gz, .zst) and parquet, each with its number or its problem.

datatrove's own readers log a bad line and go on; here a bad row is handed on, so that it is counted and listed.
"""

import glob
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from lrc.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PARQUET_ROWS = 256
CHUNK_BYTES = 1 << 20


class SourceRow(NamedTuple):
    """One row of a source file."""

    number: int
    """Line or row, from 1."""
    value: dict[str, Any] | None
    problem: str
    """Why there is no value; empty if there is one."""


def list_files(source: str) -> list[Path]:
    """List the files that a source's path stands for, sorted by name.

    Raises:
        DataError: There is none, one has an unknown kind, or one is empty.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(entry for entry in path.rglob("*") if entry.name.endswith(SUFFIXES))
    else:
        files = sorted(Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file())
    if not files:
        raise DataError(f"A source must be a file, folder or glob of {', '.join(SUFFIXES)}; {source!r} matches none.")
    for file in files:
        if not file.name.endswith(SUFFIXES):
            raise DataError(f"{file}: the name of a source must end in one of {', '.join(SUFFIXES)}.")
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty. Fetch it again or leave it out.")
    return files


def check_columns(path: Path, columns: set[str]) -> None:
    """Check a parquet file's schema before work starts.

    Raises:
        DataError: The file is damaged, or a column is missing.
    """
    try:
        found = set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} must be a parquet file, but it can't be read: {error}. Fetch it again.") from error
    if columns - found:
        raise DataError(f"{path} must have the columns {sorted(columns)}, found {sorted(found)}.")


def read_rows(path: Path) -> Iterator[SourceRow]:
    """Stream a file's rows.

    Raises:
        DataError: The file ends too early or is damaged as a whole.
    """
    done = 0
    try:
        for row in _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path):
            done = row.number
            yield row
    except (EOFError, zlib.error, zstandard.ZstdError, OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is damaged after row {done}: {error}. Fetch it again.") from error


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    with pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            for value in batch.to_pylist():
                number += 1
                yield SourceRow(number, value, "")


def _json_rows(path: Path) -> Iterator[SourceRow]:
    for number, line in enumerate(_lines(path), start=1):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield SourceRow(number, None, _json_problem(line, error))
            continue
        if isinstance(value, dict):
            yield SourceRow(number, value, "")
        else:
            yield SourceRow(number, None, "no JSON object")


def _json_problem(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "invalid UTF-8"
    return f"no JSON: {error}"


def _lines(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        with path.open("rb") as packed:
            yield from _split_lines(_unpack_zstandard(packed))
    else:
        with fsspec.open(str(path), "rb", compression="infer") as handle:
            yield from handle


def _unpack_zstandard(packed: BinaryIO) -> Iterator[bytes]:
    """Unpack all frames; the library's own reader takes a cut frame for the end of the file."""
    frame = None
    while data := packed.read(CHUNK_BYTES):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("the last zstandard frame was cut off")


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    pieces: list[bytes] = []
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*pieces, line])
            pieces = []
        pieces.append(rest)
    last = b"".join(pieces)
    if last:
        yield last
