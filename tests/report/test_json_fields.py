"""Damaged JSON is refused with the file and the line; sound JSON comes back as it is."""

from pathlib import Path

import pytest

from lrc.errors import DataError
from lrc.report.json_fields import Fields, read_json, read_json_lines


def test_values_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"text": "é", "count": 3, "number": 0.1, "null": null, "list": [1, null], "on": true}\n', "utf-8")
    fields = read_json(path)
    assert fields.text("text") == "é"
    assert fields.count("count") == 3
    assert fields.number("number") == 0.1
    assert fields.number("null") is None
    assert fields.numbers("list") == (1.0, None)
    assert fields.flag("on") is True
    assert fields.optional_section("absent") is None


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'{\n  "a": 1,\n  "b": oops\n}\n', 3, "can't be read"),
        (b'{\n  "a": 1,\n', 3, "ends in the middle"),
        (b"", 1, "empty"),
        (b'{"a":\n"\xff"}', 2, "UTF-8"),
    ],
)
def test_damage_names_file_and_line(tmp_path: Path, content: bytes, line: int, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert f"{path}, line {line}: " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_are_not_finite_are_refused(tmp_path: Path, constant: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": {constant}}}', encoding="utf-8")
    with pytest.raises(DataError, match=constant):
        read_json(path)


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400])
def test_numbers_too_large_for_a_float_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": {number}}}', encoding="utf-8")
    with pytest.raises(DataError, match="'a' must be a finite number"):
        read_json(path).number("a")


def test_file_that_holds_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(DataError, match="must hold a JSON object"):
        read_json(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": 1}\n{"a": 2}\n{"a"', 3),
        (b'{"a": 1}\n\n{"a": 2}\n', 2),
        (b'{"a": 1}\n{"a": NaN}\n', 2),
        (b"[]\n", 1),
    ],
)
def test_damaged_line_is_named(tmp_path: Path, content: bytes, line: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.jsonl, line {line}: "):
        list(read_json_lines(path))


def test_lines_know_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": true}\n', encoding="utf-8")
    first, second = read_json_lines(path)
    assert first.count("a") == 1
    with pytest.raises(DataError, match=r"a.jsonl, line 2: 'a' must be a whole number of at least 0, found true"):
        second.count("a")


def test_wrong_kinds_of_values_are_refused() -> None:
    fields = Fields({"a": "x", "b": [1, "2"], "c": {"d": -1}}, "here")
    for read in (fields.count, fields.number, fields.numbers, fields.flag, fields.section, fields.sections):
        with pytest.raises(DataError, match="here: 'a' must be"):
            read("a")
    with pytest.raises(DataError, match="'b' must be a number"):
        fields.numbers("b")
    with pytest.raises(DataError, match="here, under 'c': 'd' must be a whole number"):
        fields.section("c").count("d")
    with pytest.raises(DataError, match="the key 'z' must be there"):
        fields.text("z")
