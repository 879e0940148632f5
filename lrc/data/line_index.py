"""Where the lines of a JSONL file start: found in one pass, kept beside a large file, mapped into memory after that.

`NAME.index` holds `MAGIC`, size and time of change of the file that it belongs to, and the byte offset of each line and
of the file's end, eight bytes each, little-endian. A file that changed is scanned anew.
"""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from lrc.errors import DataError

SUFFIX = ".index"
MAGIC = b"lrc-lines/1"
HEADER_BYTES = 32
INDEXED_BYTES = 1 << 26
"""Smallest file that gets an index file; shorter ones are scanned in a tenth of a second."""
CHUNK_BYTES = 1 << 24
PREPARED = "lrc prepare reads arrays, parquet, .gz, .zst, hf:// and chats, and writes what is read here (docs/data.md)."
"""What a message says of data in another form."""
DTYPE = "<i8"


def line_starts(path: Path) -> np.ndarray:
    """Return the byte offset of each line and of the end of the file, `[lines + 1]` int64.

    A file of `INDEXED_BYTES` or more leaves `NAME.index` beside it, if its folder can be written; the next call maps
    that in constant time.

    Raises:
        DataError: The file is empty, has an empty line, or its last line was cut off.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty. It must hold one JSON object a line.")
    index = path.with_name(f"{path.name}{SUFFIX}")
    starts = _read_index(index, path)
    if starts is None:
        starts = _scan(path)
        if path.stat().st_size >= INDEXED_BYTES:
            _write_index(index, path, starts)
    last = _bytes_between(path, int(starts[-2]), int(starts[-1])).strip()
    if not last.endswith(b"}"):
        if _bytes_between(path, 0, HEADER_BYTES).lstrip().startswith(b"["):
            raise DataError(f"{path} holds a JSON array, and must hold one JSON object a line. {PREPARED}")
        raise DataError(f"{path}:{len(starts) - 1}: the last line was cut off. Write the file anew.")
    return starts


def _header(path: Path) -> bytes:
    facts = path.stat()
    numbers = b"".join(number.to_bytes(8, "little") for number in (facts.st_size, facts.st_mtime_ns))
    return MAGIC.ljust(HEADER_BYTES - len(numbers), b"\0") + numbers


def _read_index(index: Path, path: Path) -> np.ndarray | None:
    """Map the index of this very file; None if there is none or it belongs to an older state."""
    if not index.is_file() or index.stat().st_size < HEADER_BYTES + 2 * 8:
        return None
    if _bytes_between(index, 0, HEADER_BYTES) != _header(path):
        return None
    starts = np.memmap(index, dtype=DTYPE, mode="r", offset=HEADER_BYTES)
    return starts if starts[-1] == path.stat().st_size else None


def _write_index(index: Path, path: Path, starts: np.ndarray) -> None:
    """Write the index whole or not at all; ranks that start at once each write the same."""
    draft = index.with_name(f".{index.name}.{os.getpid()}")
    try:
        with draft.open("wb") as out:
            out.write(_header(path))
            starts.astype(DTYPE).tofile(out)
        os.replace(draft, index)
    except OSError:  # data in a folder that can't be written is read without an index file
        with suppress(OSError):  # a read-only file system refuses to remove what is not there
            draft.unlink(missing_ok=True)


def _scan(path: Path) -> np.ndarray:
    """Find the line starts in one pass over the file; refuses empty lines."""
    size = path.stat().st_size
    pieces = [np.zeros(1, dtype=np.int64)]
    buffer = np.empty(min(CHUNK_BYTES, size), dtype=np.uint8)
    begin = 0
    with path.open("rb", buffering=0) as stream:
        while filled := stream.readinto(buffer.data):
            pieces.append(np.flatnonzero(buffer[:filled] == 0x0A) + begin + 1)
            begin += filled
    starts = np.concatenate(pieces)
    if starts[-1] != size:
        starts = np.append(starts, size)
    for line in np.flatnonzero(np.diff(starts) <= 2):
        if not _bytes_between(path, int(starts[line]), int(starts[line + 1])).strip():
            raise DataError(f"{path}:{line + 1}: empty line. Every line must hold one JSON object.")
    return starts


def _bytes_between(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(start)
        return stream.read(end - start)
