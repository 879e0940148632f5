"""Rows of local benchmark files: which are taken, and how the bad ones are named."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lrc.errors import DataError
from lrc.evaluation.task_rows import FIELDS, read_task_rows
from tests.evaluation.made_up_tasks import MAKERS, write_rows


@pytest.mark.parametrize("task", MAKERS)
def test_good_rows_come_back_as_they_are(tmp_path: Path, task: str) -> None:
    rows = [MAKERS[task](random.Random(seed)) for seed in range(3)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_task_rows(tmp_path / "rows.jsonl", task) == rows


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_separator_of_unicode_inside_a_field_ends_no_line(tmp_path: Path, end: str) -> None:
    rows = [{"goal": f"a{mark}b", "sol1": "x", "sol2": "y", "label": 0} for mark in "\x85\u2028\u2029\x0b\x0c"]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "rows.jsonl").write_text((end or "\n").join(lines) + end, encoding="utf-8", newline="")
    assert read_task_rows(tmp_path / "rows.jsonl", "piqa") == rows


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("piqa", "[1]", "must be a JSON object, found list"),
        ("piqa", "{", "must be a JSON object, but it is not"),
        ("piqa", "", "must be a JSON object, but it is not"),
        ("piqa", {"goal": "a", "sol1": "b", "sol2": "c"}, "must have the field 'label', but it has: goal, sol1, sol2"),
        ("piqa", {"goal": "a", "sol1": "b", "sol2": 3, "label": 0}, "'sol2' must be a string, found 3"),
        ("piqa", {"goal": "a", "sol1": "b", "sol2": "c", "label": True}, "'label' must be a whole number, found true"),
        ("logiqa", {"context": "", "question": "", "options": [], "label": "a"}, "'options' must be a list of strings"),
        (
            "arc_easy",
            {"question": "q", "choices": {"text": ["a"], "label": ["A", "B"]}, "answerKey": "A"},
            "'choices' must be an object with the lists of strings",
        ),
        ("arc_easy", {"question": "q", "choices": ["a"], "answerKey": "A"}, "'choices' must be an object"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, task: str, row: Any, message: str) -> None:
    good = json.dumps(MAKERS[task](random.Random(0)))
    text = row if isinstance(row, str) else json.dumps(row)
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{text}\n")
    with pytest.raises(DataError) as caught:
        read_task_rows(tmp_path / "rows.jsonl", task)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:2: ")
    assert message in str(caught.value)


def test_rows_of_another_task_need_the_first_ones_fields(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"a": 1, "b": "x"}, {"a": 2, "b": "y", "c": 0}, {"a": 3}])
    with pytest.raises(DataError, match=r"rows\.jsonl:3: a row of own must have the field 'b', but it has: a\."):
        read_task_rows(tmp_path / "rows.jsonl", "own")


def test_a_field_of_another_task_may_be_null(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": None}, {"a": None, "b": "y"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_task_rows(tmp_path / "rows.jsonl", "own") == rows
    write_rows(tmp_path / "rows.jsonl", [*rows, {"b": None}])
    with pytest.raises(DataError, match=r"rows\.jsonl:3: a row of own must have the field 'a', but it has: b\."):
        read_task_rows(tmp_path / "rows.jsonl", "own")


@pytest.mark.parametrize(("content", "message"), [(b"", "it is empty"), (b"\xff\xfe", "text file that can be read")])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_task_rows(tmp_path / "rows.jsonl", "piqa")


def test_fields_are_known_for_every_stock_task() -> None:
    from lrc.evaluation.task_files import STOCK

    assert set(FIELDS) == {*STOCK, "mmlu"}
