"""The benchmark section of results.json: read, checked, shown."""

from typing import Any

import pytest

from lrc.errors import DataError
from lrc.report.json_fields import Fields
from lrc.report.task_records import TABLE_HEADER, read_task_results, task_rows, truncation_text
from tests.report.synthetic_run import task_values


def rows_of(values: dict[str, Any]) -> list[tuple[str, ...]]:
    return task_rows(read_task_results(Fields(values, "results.json")))


def test_shares_are_shown_in_percent_with_errors_and_interval() -> None:
    rows = rows_of(task_values())
    assert all(len(row) == len(TABLE_HEADER) for row in rows)
    assert rows[0] == ("arc_easy", "acc", "2,376", "63.50 ± 1.0", "51.25 ± 1.0", "-12.25 ± 0.9", "-14.0 to -10.5")
    assert rows[1][:2] == ("logiqa", "acc_norm")
    assert rows[-1][:3] == ("average of 2", "", "–")


def test_without_a_teacher_its_columns_are_empty() -> None:
    assert rows_of(task_values(with_teacher=False))[0][3:] == ("–", "51.25 ± 1.0", "–", "–")


def test_a_measure_that_is_no_share_keeps_its_own_size() -> None:
    values = task_values()
    score = {"value": 1234.5678, "standard_error": None}
    row = {"task": "own", "metric": "word_perplexity,none", "items": 60, "num_fewshot": 0}
    values["scores"] = [{**row, "teacher": score, "student": score, "difference": None}]
    values["average"] = None
    assert rows_of(values) == [("own", "word_perplexity", "60", "1,234.568", "1,234.568", "–", "–")]


def test_an_unknown_error_is_left_out_of_a_share() -> None:
    values = task_values()
    values["scores"][0]["student"] = {"value": 1.0, "standard_error": None}
    assert rows_of(values)[0][4] == "100.00"


def test_a_damaged_section_says_where() -> None:
    values = task_values()
    values["scores"][1]["student"] = {"value": "high", "standard_error": None}
    with pytest.raises(
        DataError, match=r"results.json, under 'scores'\[1\], under 'student': 'value' must be a number"
    ):
        rows_of(values)


@pytest.mark.parametrize(
    ("truncated", "said"),
    [
        (None, ""),
        ({"student": 0, "teacher": 0}, ""),
        ({"student": 1200}, " Requests longer than the context, so cut at the front: 1,200 of the student."),
        (
            {"teacher": 2, "student": 3},
            " Requests longer than the context, so cut at the front: 3 of the student, 2 of the teacher.",
        ),
    ],
)
def test_prompts_that_lost_their_beginning_are_said(truncated: dict[str, int] | None, said: str) -> None:
    values = task_values()
    if truncated is not None:
        values["truncated"] = truncated
    assert truncation_text(read_task_results(Fields(values, "results.json"))) == said
