"""Rows of every format come out numbered; a bad row is handed on, a damaged file is named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrc.data import source_rows
from lrc.data.source_rows import ReadShare, read_rows
from lrc.errors import DataError
from tests.data.raw_sources import texts, write_source

NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.zstd", "a.json", "a.parquet"]
BIG: list[Any] = [{"text": f"{number} " + "y" * 997} for number in range(3000)]
"""Three chunks of a compressed file."""


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_its_rows_with_their_numbers(tmp_path: Path, name: str) -> None:
    rows = list(read_rows(write_source(tmp_path / name, BIG)))
    assert [row.number for row in rows] == list(range(1, 3001))
    assert [row.value for row in rows] == BIG
    assert not any(row.problem for row in rows)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "\xff\xfe"}\n', "invalid UTF-8"),
        (b'{"text": "cut o\n', "no JSON"),
        (b"[1, 2]\n", "no JSON object"),
        (b"\n", "no JSON"),
    ],
)
@pytest.mark.parametrize("name", NAMES[:5])
def test_a_bad_line_is_handed_on_with_its_number_and_the_rest_is_read(
    tmp_path: Path, name: str, line: bytes, problem: str
) -> None:
    rows = list(read_rows(write_source(tmp_path / name, [{"text": "a"}, line, {"text": "b"}])))
    assert [row.value for row in rows] == [{"text": "a"}, None, {"text": "b"}]
    assert rows[1].number == 2
    assert rows[1].problem.startswith(problem)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.zstd", "a.parquet"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, name: str, share: float) -> None:
    path = write_source(tmp_path / name, BIG)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=rf"{name} is damaged after row \d+"):
        list(read_rows(path))


def test_a_zstandard_file_may_have_several_frames(tmp_path: Path) -> None:
    one, two = (write_source(tmp_path / f"{name}.jsonl.zst", texts(3, start)) for name, start in (("a", 0), ("b", 3)))
    both = tmp_path / "both.jsonl.zst"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert [row.value for row in read_rows(both)] == texts(6)


# ---- a .json file with one array, as OpenHermes-2.5 is stored


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst"])
def test_an_array_gives_its_elements_whatever_its_layout(tmp_path: Path, name: str, indent: int | None) -> None:
    rows = [{"text": f"[{number}], {{é}} \\u00e9 " + "y" * 997, "more": [{}]} for number in range(3000)]
    path = write_source(tmp_path / name, [json.dumps(rows, indent=indent).encode()])
    found = list(read_rows(path))
    assert [row.value for row in found] == rows
    assert [row.number for row in found] == list(range(1, 3001))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_an_array_may_be_cut_into_chunks_anywhere(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_rows, "CHUNK_BYTES", chunk)
    path = tmp_path / "a.json"
    path.write_bytes('[\n{"text": "é] ,"} , 123, {"text": "b"},null ]\n'.encode())
    assert [(row.value, row.problem) for row in read_rows(path)] == [
        ({"text": "é] ,"}, ""),
        (None, "no JSON object"),
        ({"text": "b"}, ""),
        (None, "no JSON object"),
    ]


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[ ]\n")
    assert list(read_rows(path)) == []


@pytest.mark.parametrize(
    ("data", "row"),
    [
        (b'[{"a": 1}, {"a": 2}', 2),
        (b'[{"a": 1}, {"a"', 1),
        (b'[{"a": 1}, oops, {"a": 2}]', 1),
        (b'[{"a": 1}, {"a": "\xff"}]', 0),
        (b'[{"a": 1}] more', 1),
    ],
)
def test_a_broken_array_is_an_error_that_names_the_last_good_element(tmp_path: Path, data: bytes, row: int) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.json is damaged after row {row}: "):
        list(read_rows(tmp_path / "a.json"))


def test_errors_call_a_fetched_file_by_its_address(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[")
    with pytest.raises(DataError, match=r"hf://datasets/o/n/a\.json is damaged after row 0"):
        list(read_rows(tmp_path / "a.json", name="hf://datasets/o/n/a.json"))


# ---- parquet


def invalid_utf8(values: list[bytes]) -> pa.Array:
    """A column of strings of which arrow has checked none."""
    return pa.array(values, type=pa.binary()).view(pa.string())


def test_a_parquet_row_with_invalid_utf8_is_bad_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": invalid_utf8([b"a", b"\xff\xfe", b"c"]), "score": [1, 2, 3]}), path)
    rows = list(read_rows(path))
    assert [row.value for row in rows] == [{"text": "a", "score": 1}, None, {"text": "c", "score": 3}]
    assert [(row.number, row.problem) for row in rows] == [(1, ""), (2, "invalid UTF-8"), (3, "")]


def test_columns_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    meta = [{"score": 4, "url": "u"}, {"score": 5, "url": None}]
    pq.write_table(pa.table({"text": ["a", "b"], "raw": invalid_utf8([b"\xff", b"b"]), "meta": meta}), path)
    columns = {"text", "meta", "gone"}
    found = [row.value for row in read_rows(path, columns=columns)]
    assert found == [{"text": "a", "meta": meta[0]}, {"text": "b", "meta": meta[1]}]
    assert [row.value for row in read_rows(path, columns={"gone"})] == [row.value for row in read_rows(path)]


@pytest.mark.parametrize("name", NAMES)
def test_how_much_has_been_read_grows_to_the_whole(tmp_path: Path, name: str) -> None:
    read = ReadShare()
    shares = [read.share for _ in read_rows(write_source(tmp_path / name, BIG), read=read)]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] == 1.0
    if name in ("a.jsonl", "a.json", "a.parquet"):
        assert shares[0] < 0.4
