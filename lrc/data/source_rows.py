"""Rows of raw sources, streamed: JSON lines and arrays (plain, .gz, .zst) and parquet, each with number or problem.

datatrove's own readers log a bad line and go on; here a bad row is handed on, so that it is counted and listed.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from lrc.data.source_files import ARRAYS
from lrc.errors import DataError

PARQUET_ROWS = 256
CHUNK_BYTES = 1 << 20
SPACE = " \t\r\n"
LONGEST_ELEMENT = 1 << 27
"""Characters after which an element of an array counts as one that has no end."""


class SourceRow(NamedTuple):
    """One row of a source file."""

    number: int
    """Line, row or element, from 1."""
    value: dict[str, Any] | None
    problem: str
    """Why there is no value; empty if there is one."""


@dataclass
class ReadShare:
    """How much of a file has been read."""

    share: float = 0.0
    """In 0..1, of its bytes (parquet: of its rows)."""


class _BrokenArray(Exception):
    """A JSON array that can't be read on; its text is the reason."""


def read_rows(
    path: Path, *, name: str | None = None, columns: Collection[str] | None = None, read: ReadShare | None = None
) -> Iterator[SourceRow]:
    """Stream a file's rows.

    Args:
        path: The file on this machine.
        name: What errors call it; None: its path.
        columns: Those of a parquet file that are needed, if it has them; None: all. Other rows come whole.
        read: Follows how much has been read.

    Raises:
        DataError: The file ends too early or is damaged as a whole.
    """
    done = 0
    try:
        for row in _rows(path, columns, read or ReadShare()):
            done = row.number
            yield row
    except (EOFError, zlib.error, zstandard.ZstdError, OSError, pa.ArrowException, _BrokenArray) as error:
        raise DataError(f"{name or path} is damaged after row {done}: {error}. Fetch it again.") from error


def _rows(path: Path, columns: Collection[str] | None, read: ReadShare) -> Iterator[SourceRow]:
    if path.suffix == ".parquet":
        return _parquet_rows(path, columns, read)
    chunks = _chunks(path, read)
    if path.name.endswith(ARRAYS):
        first = next(chunks, b"")
        chunks = chain([first], chunks)
        if first.lstrip().startswith(b"["):
            return _array_rows(chunks)
    return _line_rows(chunks)


def _parquet_rows(path: Path, columns: Collection[str] | None, read: ReadShare) -> Iterator[SourceRow]:
    with pq.ParquetFile(path) as file:
        kept = [name for name in file.schema_arrow.names if columns is None or name in columns]
        number = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=kept or None):
            read.share = (number + batch.num_rows) / file.metadata.num_rows
            for value, problem in _values(batch):
                number += 1
                yield SourceRow(number, value, problem)


def _values(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Yield the rows of a batch or their problems; arrow checks no value before it becomes Python's."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0], ""
            except UnicodeDecodeError:
                yield None, "invalid UTF-8"
            except (ValueError, OverflowError) as error:
                yield None, f"a value can't be read: {error}"
        return
    yield from ((value, "") for value in values)


def _line_rows(chunks: Iterator[bytes]) -> Iterator[SourceRow]:
    for number, line in enumerate(_split_lines(chunks), start=1):
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


def _array_rows(chunks: Iterator[bytes]) -> Iterator[SourceRow]:
    """Read the elements of one JSON array (OpenHermes-2.5 is one) without holding more than one and a chunk."""
    elements = _array_elements(chunks)
    for number, value in enumerate(elements, start=1):
        is_object = isinstance(value, dict)
        yield SourceRow(number, value if is_object else None, "" if is_object else "no JSON object")


def _array_elements(chunks: Iterator[bytes]) -> Iterator[Any]:
    text = codecs.getincrementaldecoder("utf-8")()
    scan = json.JSONDecoder().raw_decode
    rest, opened = "", False
    for chunk in chain(chunks, [b""]):
        try:
            rest += text.decode(chunk, final=not chunk)
        except UnicodeDecodeError:
            raise _BrokenArray("invalid UTF-8") from None
        position = 0
        while True:
            position = _skip(rest, position, "[" if not opened else ",")
            opened = True
            if position == len(rest) or rest[position] == "]":
                break
            try:
                value, end = scan(rest, position)
            except json.JSONDecodeError:
                break  # the element goes on in the next chunk, or the array is cut
            if end == len(rest) and chunk:
                break  # a number may go on
            yield value
            position = end
        rest = rest[position:]
        if len(rest) > LONGEST_ELEMENT:
            break
    if not rest.startswith("]") or rest[1:].strip():
        raise _BrokenArray("the JSON array is cut off or not valid")


def _skip(text: str, position: int, separator: str) -> int:
    """Step over white space and at most one separator."""
    taken = False
    while position < len(text) and (text[position] in SPACE or (text[position] == separator and not taken)):
        taken = taken or text[position] == separator
        position += 1
    return position


def _chunks(path: Path, read: ReadShare) -> Iterator[bytes]:
    """Read and unpack a file."""
    num_bytes = max(1, path.stat().st_size)
    with path.open("rb") as packed:
        for chunk in _unpacked(path, packed):
            read.share = packed.tell() / num_bytes
            yield chunk


def _unpacked(path: Path, packed: BinaryIO) -> Iterator[bytes]:
    if path.suffix in (".zst", ".zstd"):
        yield from _unpack_zstandard(packed)
        return
    with gzip.open(packed) if path.suffix == ".gz" else packed as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


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
            yield b"".join([*pieces, line]) if pieces else line
            pieces = []
        pieces.append(rest)
    last = b"".join(pieces)
    if last:
        yield last
