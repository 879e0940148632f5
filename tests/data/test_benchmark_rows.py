"""Every string of a benchmark's rows is found, whatever it lies in."""

from pathlib import Path

import pytest

from lrc.data.benchmark_rows import benchmark_texts, list_benchmarks
from lrc.errors import DataError
from tests.data.raw_sources import write_source


def test_strings_inside_lists_and_objects_are_found(tmp_path: Path) -> None:
    rows = [{"q": "a", "n": 1, "choices": {"text": ["b", "c"], "label": ["A"]}, "none": None}, {"q": "d"}]
    write_source(tmp_path / "a.jsonl", rows)
    write_source(tmp_path / "b.parquet", [{"ctx": "e", "endings": ["f"]}])
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "*.parquet")]
    assert list(benchmark_texts(paths)) == ["a", "b", "c", "A", "d", "e", "f"]
    assert [Path(file.path).name for file in list_benchmarks(paths)] == ["a.jsonl", "b.parquet"]


def test_a_bad_row_of_a_benchmark_is_an_error(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", [{"q": "a"}, b"{\n"])
    with pytest.raises(DataError, match=r"a\.jsonl:2: a benchmark's row must be readable: no JSON"):
        list(benchmark_texts([str(tmp_path / "a.jsonl")]))
