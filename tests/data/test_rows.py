"""Rows by number: any line end, any number of files, and errors that name file and line."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrc.data import line_index
from lrc.data.rows import JsonLines, resolve_files
from lrc.errors import DataError

# with what may not split a line: escaped newlines, quotes, Unicode's own line separators, characters of many bytes
text = st.text('a \n\r"\\\x85\u2028é𝄞', max_size=6)
values = st.one_of(st.integers(), text, st.lists(st.integers(0, 9), max_size=4))
rows = st.dictionaries(text, values, max_size=2)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def numbered(*numbers: int) -> bytes:
    return b"".join(b'{"number": %d}\n' % number for number in numbers)


def all_numbers(lines: JsonLines) -> list[int]:
    found = [lines.read(row)["number"] for row in range(len(lines))]
    assert [row["number"] for row in lines] == found
    return found


@given(
    files=st.lists(st.lists(rows, min_size=1, max_size=6), min_size=1, max_size=3),
    line_end=st.sampled_from(["\n", "\r\n"]),
    ends_with_newline=st.booleans(),
    escaped=st.booleans(),
    reversed_order=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_every_row_comes_back_with_its_file_and_line(
    files: list[list[dict[str, object]]], line_end: str, ends_with_newline: bool, escaped: bool, reversed_order: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected = []
        for number, file_rows in enumerate(files):
            path = Path(folder) / f"{number}.jsonl"
            texts = [json.dumps(row, ensure_ascii=escaped) for row in file_rows]
            text = line_end.join(texts) + (line_end if ends_with_newline else "")
            path.write_bytes(text.encode())
            expected += [(f"{path}:{line + 1}", row) for line, row in enumerate(file_rows)]
        lines = JsonLines(folder)
        assert len(lines) == len(expected)
        order = range(len(expected))
        for row in reversed(order) if reversed_order else order:
            assert (lines.where(row), lines.read(row)) == expected[row]


def test_a_last_line_without_a_newline_is_a_row(tmp_path: Path) -> None:
    assert all_numbers(JsonLines(write(tmp_path / "a.jsonl", numbered(1, 2)[:-1]))) == [1, 2]


def test_a_folder_stands_for_its_jsonl_files_by_name(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", numbered(3))
    write(tmp_path / "a.jsonl", numbered(1, 2))
    write(tmp_path / "manifest.json", b"{}")
    write(tmp_path / "deeper" / "c.jsonl", numbered(4))
    assert [path.name for path in resolve_files(str(tmp_path))] == ["a.jsonl", "b.jsonl"]
    assert all_numbers(JsonLines(str(tmp_path))) == [1, 2, 3]


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [("part-*.jsonl", [1, 2]), ("part-[1].jsonl", [2]), ("**/*.jsonl", [3, 9, 1, 2]), ("deeper/*.jsonl", [3])],
)
def test_a_glob_stands_for_what_it_matches_by_name(tmp_path: Path, pattern: str, numbers: list[int]) -> None:
    write(tmp_path / "part-1.jsonl", numbered(2))
    write(tmp_path / "part-0.jsonl", numbered(1))
    write(tmp_path / "other.jsonl", numbered(9))
    write(tmp_path / "deeper" / "c.jsonl", numbered(3))
    assert all_numbers(JsonLines(str(tmp_path / pattern))) == numbers


def test_a_glob_passes_over_folders(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", numbered(1))
    (tmp_path / "cache").mkdir()
    assert all_numbers(JsonLines(str(tmp_path / "*"))) == [1]


def test_a_glob_passes_over_the_indexes_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_index, "INDEXED_BYTES", 1)
    write(tmp_path / "a.jsonl", numbered(1, 2))
    write(tmp_path / "b.jsonl", numbered(3))
    for _ in range(2):
        assert all_numbers(JsonLines(str(tmp_path / "*"))) == [1, 2, 3]
        assert (tmp_path / "a.jsonl.index").is_file()


@pytest.mark.parametrize("source", ["missing.jsonl", "*.jsonl", "."])
def test_a_source_without_files_is_refused_by_name(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text.txt", b"text")
    with pytest.raises(DataError, match="matches no file") as caught:
        JsonLines(source)
    assert repr(source) in str(caught.value)


def test_an_empty_file_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", numbered(1))
    empty = write(tmp_path / "b.jsonl", b"")
    with pytest.raises(DataError, match="is empty") as caught:
        JsonLines(str(tmp_path))
    assert empty in str(caught.value)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("line", [1, 2, 3])
def test_an_empty_line_is_refused_with_file_and_line(tmp_path: Path, line_end: bytes, line: int) -> None:
    lines = [b'{"number": 0}'] * 2
    lines.insert(line - 1, b"")
    path = write(tmp_path / "a.jsonl", line_end.join(lines) + line_end)
    with pytest.raises(DataError, match=f":{line}: empty line") as caught:
        JsonLines(path)
    assert str(caught.value).startswith(f"{path}:{line}:")


def test_short_rows_are_no_empty_lines(tmp_path: Path) -> None:
    assert len(JsonLines(write(tmp_path / "a.jsonl", b"{}\n{}\n{}"))) == 3


@pytest.mark.parametrize("cut", [b'{"number": 2', b'{"numb', b'{"number": [1, 2]', b"{"])
@pytest.mark.parametrize("line_end", [b"", b"\n"])
def test_a_cut_last_line_is_refused_with_file_and_line(tmp_path: Path, cut: bytes, line_end: bytes) -> None:
    path = write(tmp_path / "a.jsonl", numbered(1) + cut + line_end)
    with pytest.raises(DataError, match="the last line was cut off") as caught:
        JsonLines(path)
    assert str(caught.value).startswith(f"{path}:2:")


def test_a_cut_file_is_found_among_several(tmp_path: Path) -> None:
    cut = write(tmp_path / "a.jsonl", numbered(1) + b'{"number"')
    write(tmp_path / "b.jsonl", numbered(2))
    with pytest.raises(DataError, match="cut off") as caught:
        JsonLines(str(tmp_path))
    assert f"{cut}:2" in str(caught.value)


def test_a_line_cut_after_a_brace_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", numbered(1) + b'{"number": {"of": 2}')
    with pytest.raises(DataError, match="must be a JSON object") as caught:
        JsonLines(path).read(1)
    assert f"{path}:2" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"[1, 2]", "list"),
        (b"5", "int"),
        (b'"text"', "str"),
        (b"null", "NoneType"),
        (b"{1}", ""),
        (b'{"a":"\xff"}', ""),
    ],
)
def test_a_row_that_is_no_object_is_refused_with_file_and_line(tmp_path: Path, line: bytes, found: str) -> None:
    write(tmp_path / "a.jsonl", numbered(1, 2, 3))
    path = write(tmp_path / "b.jsonl", numbered(4) + line + b"\n" + numbered(6))
    lines = JsonLines(str(tmp_path))
    with pytest.raises(DataError, match="must be a JSON object") as caught:
        lines.read(4)
    assert str(caught.value).startswith(f"{path}:2:")
    assert found in str(caught.value)
    assert lines.read(5) == {"number": 6}


def test_lines_are_found_on_both_sides_of_a_piece_of_the_index(tmp_path: Path) -> None:
    piece = 1 << 26
    path = tmp_path / "a.jsonl"
    with path.open("wb") as handle:
        # the first row's newline is the last byte of a piece, the second's the first of the next but one; the file is
        # sparse, so it is long without being large
        handle.seek(piece - 1)
        handle.write(b"\n" + numbered(2))
        handle.seek(2 * piece)
        handle.write(b"\n" + numbered(4))
    lines = JsonLines(str(path))
    assert len(lines) == 4
    assert lines.read(1) == {"number": 2}
    assert lines.read(3) == {"number": 4}


def test_data_in_another_form_is_named_with_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.parquet", b"PAR1")
    write(tmp_path / "rows.jsonl.gz", b"\x1f\x8b")
    write(tmp_path / "array.jsonl", b' [{"text": "a"},\n {"text": "b"}]\n')
    for source, reason in (
        ("rows.parquet", "found a .parquet file"),
        ("rows.jsonl.*", "found a .gz file"),
        ("array.jsonl", "holds a JSON array"),
        ("hf://datasets/some/rows", "matches no file"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            JsonLines(source)
        assert "lrc prepare reads" in str(caught.value)
    with pytest.raises(DataError, match=r"matches no file\. Run lrc prepare first\."):
        JsonLines("runs/mine/prepare")
