"""Rows of every format come out numbered; a bad row is handed on, a damaged file is named."""

from pathlib import Path
from typing import Any

import pytest

from lrc.data.source_rows import check_columns, list_files, read_rows
from lrc.errors import DataError
from tests.data.raw_sources import texts, write_source

NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]
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
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_bad_line_is_handed_on_with_its_number_and_the_rest_is_read(
    tmp_path: Path, name: str, line: bytes, problem: str
) -> None:
    rows = list(read_rows(write_source(tmp_path / name, [{"text": "a"}, line, {"text": "b"}])))
    assert [row.value for row in rows] == [{"text": "a"}, None, {"text": "b"}]
    assert rows[1].number == 2
    assert rows[1].problem.startswith(problem)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
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


def test_files_are_listed_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.jsonl.gz"):
        write_source(tmp_path / name, texts(1))
    (tmp_path / "notes.txt").write_text("no source")
    assert [path.name for path in list_files(str(tmp_path))] == ["a.parquet", "b.jsonl", "c.jsonl.gz"]
    assert [path.name for path in list_files(str(tmp_path / "*.jsonl*"))] == ["b.jsonl", "c.jsonl.gz"]


def test_no_file_an_empty_one_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches none"):
        list_files(str(tmp_path))
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match=r"a\.jsonl is empty"):
        list_files(str(tmp_path))
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"a\.csv: the name of a source must end in"):
        list_files(str(tmp_path / "a.csv"))


def test_a_parquet_schema_is_checked_before_the_rows(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.parquet", [{"content": "a", "score": 1}])
    check_columns(path, {"content"})
    with pytest.raises(DataError, match=r"must have the columns \['text'\], found \['content', 'score'\]"):
        check_columns(path, {"text"})
    path.write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="must be a parquet file"):
        check_columns(path, {"text"})
