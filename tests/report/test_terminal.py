"""The scorecard on the terminal says what results.json says, and prints models' text as it is."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lrc.report.terminal import print_scorecard
from tests.report.synthetic_run import results_values, write_json


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def values_of(*, with_teacher: bool = True) -> dict[str, Any]:
    return results_values(2, random.Random(0), with_teacher=with_teacher)


def printed(folder: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    write_json(folder / "results.json", values)
    print_scorecard(folder / "results.json")
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def rows_of(text: str) -> dict[str, list[str]]:
    """Return the table's cells by the label of their row."""
    lines = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_the_numbers_are_those_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(tmp_path, values_of(), capsys)
    assert text.splitlines()[0].strip() == "scorecard"
    assert [part.strip() for part in text.splitlines()[2].strip("┃ ").split("┃")] == [
        "measure",
        "teacher",
        "student",
        "student / teacher",
    ]
    assert rows_of(text) == {
        "parameters": ["134,515,008", "67,265,568", "0.50"],
        "file size, MB": ["269.1", "134.6", "0.50"],
        "bits per byte": ["1.269", "1.552", "1.22"],
        "perplexity": ["44.31", "102.95", "2.32"],
        "prefill, tokens/s": ["1,215", "2,216", "1.82"],
        "decode, tokens/s": ["21.4", "38.9", "1.82"],
        "KL to teacher, nats": ["0", "1.074", "-"],
        "top-1 agreement": ["100 %", "50.9%", "-"],
        "top-5 agreement": ["100 %", "62.2%", "-"],
    }


def test_the_prompt_comes_first_then_each_models_answer_on_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(tmp_path, values_of(), capsys).splitlines()
    first = lines.index("The capital of France is")
    assert lines[first + 1].startswith("  teacher: Paris. It is the largest city in France")
    assert lines[first + 2].startswith("  student: Paris. The city is the capital")


def test_without_a_teacher_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(tmp_path, values_of(with_teacher=False), capsys)
    rows = rows_of(text)
    assert len(rows) == 6
    assert {(teacher, ratio) for teacher, _, ratio in rows.values()} == {("-", "-")}
    assert rows["parameters"][1] == "67,265,568"
    assert "teacher:" not in text
    assert text.count("  student: ") == 3


def test_a_measure_of_zero_has_no_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of()
    values["teacher"]["bits_per_byte"] = 0.0
    assert rows_of(printed(tmp_path, values, capsys))["bits per byte"] == ["0.000", "1.552", "-"]


@pytest.mark.parametrize("text", ["[red]5[/red]", "[/bold] [link=x]y[/link]", "x[0] = [1, 2]", "\\[b]"])
def test_what_models_write_is_not_read_as_markup(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of()
    values["samples"] = [{"prompt": "Go on:", "teacher": text, "student": f"not\n\n{text}"}]
    out = printed(tmp_path, values, capsys)
    assert f"\n  teacher: {text}\n  student: not {text}\n" in out


def test_what_models_write_keeps_its_colons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of()
    values["samples"] = [{"prompt": "Go on:", "teacher": None, "student": "a :smile: b"}]
    assert "  student: a :smile: b" in printed(tmp_path, values, capsys).splitlines()


@pytest.mark.parametrize("prompt", ["[red]5[/red]", "print(x[/2])", "[bold]"])
def test_a_prompt_is_not_read_as_markup(tmp_path: Path, prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of()
    values["samples"] = [{"prompt": prompt, "teacher": None, "student": "x"}]
    assert prompt in printed(tmp_path, values, capsys).splitlines()


def test_nothing_but_the_file_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of()
    text = printed(tmp_path, values, capsys)
    assert json.loads((tmp_path / "results.json").read_text()) == values
    assert printed(tmp_path, {**values, "versions": {}, "machine": {}, "effective_rank": {}}, capsys) == text
    values["student"]["top1_agreement"] = 0.25
    assert rows_of(printed(tmp_path, values, capsys))["top-1 agreement"] == ["100 %", "25.0%", "-"]
