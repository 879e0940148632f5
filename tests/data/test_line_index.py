"""Line starts: one pass, then a mapped index that is used for the very same file only."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrc.data import line_index
from lrc.data.blocks import open_blocks
from lrc.data.line_index import line_starts
from lrc.errors import DataError

ROWS = b'{"input_ids": [1, 2]}\n{"input_ids": [3]}\n{"input_ids": [4, 5, 6]}\n'


@pytest.fixture(autouse=True)
def small_files_are_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_index, "INDEXED_BYTES", 1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(ROWS)
    return path


def no_scan(path: Path) -> np.ndarray:
    raise AssertionError(f"{path} was scanned")


def test_the_second_opening_maps_the_index_and_scans_nothing(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = line_starts(rows)
    assert first.tolist() == [0, 22, 41, len(ROWS)]
    monkeypatch.setattr(line_index, "_scan", no_scan)
    second = line_starts(rows)
    assert isinstance(second, np.memmap)
    assert second.tolist() == first.tolist()


def test_a_changed_file_is_scanned_anew(rows: Path) -> None:
    line_starts(rows)
    rows.write_bytes(ROWS + ROWS)
    assert len(line_starts(rows)) == 7


def test_a_file_of_the_same_size_changed_later_is_scanned_anew(rows: Path) -> None:
    line_starts(rows)
    later = rows.stat().st_mtime_ns + 1
    rows.write_bytes(ROWS[22:41] + ROWS[:22] + ROWS[41:])
    os.utime(rows, ns=(later, later))
    assert line_starts(rows).tolist() == [0, 19, 41, len(ROWS)]


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_index_is_not_used(rows: Path, damage: str) -> None:
    expected = line_starts(rows).tolist()
    index = rows.with_name("train.jsonl.index")
    data = index.read_bytes()
    index.write_bytes({"cut": data[:-8], "empty": b"", "foreign": b"x" * len(data)}[damage])
    assert line_starts(rows).tolist() == expected
    assert index.read_bytes() == data


@pytest.mark.parametrize("opening", [1, 2])
def test_a_cut_last_line_is_an_error_that_names_it_at_every_opening(rows: Path, opening: int) -> None:
    rows.write_bytes(ROWS[:-5])
    for _ in range(opening):
        with pytest.raises(DataError, match=r"train\.jsonl:3: the last line was cut off"):
            line_starts(rows)


def test_a_folder_that_cannot_be_written_is_read_without_an_index(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refused)
    assert line_starts(rows).tolist() == [0, 22, 41, len(ROWS)]
    assert [path.name for path in rows.parent.iterdir()] == ["train.jsonl"]


def test_a_read_only_file_system_is_read_without_an_index(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def read_only(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, mode, *arguments, **options)

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")  # whether the name is there or not

    monkeypatch.setattr(Path, "open", read_only)
    monkeypatch.setattr(Path, "unlink", refused)
    assert line_starts(rows).tolist() == [0, 22, 41, len(ROWS)]


def test_a_small_file_leaves_no_index(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_index, "INDEXED_BYTES", len(ROWS) + 1)
    line_starts(rows)
    assert [path.name for path in rows.parent.iterdir()] == ["train.jsonl"]


def test_an_indexed_file_of_10_gigabytes_opens_in_under_a_second(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with path.open("wb") as out:  # sparse: two rows, a line that is never read, a last row
        out.write(ROWS[:41])
        out.seek(10**10)
        out.write(b"\n" + ROWS[:22])
    starts = np.asarray([0, 22, 41, 10**10 + 1, 10**10 + 23])
    line_index._write_index(path.with_name("train.jsonl.index"), path, starts)
    began = time.perf_counter()
    blocks = open_blocks(str(path), None, sequence_length=8, vocab_size=9)
    assert blocks.read(1).ids.tolist() == [3]
    assert time.perf_counter() - began < 1
    assert len(blocks) == 4
