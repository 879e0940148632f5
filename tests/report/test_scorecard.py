"""The scorecard's numbers are those of results.json, and the words around them follow what the run has."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lrc.method_config import Method
from lrc.report.read_run import RESULTS_FILE, read_run
from lrc.report.records import RunData
from lrc.report.scorecard import (
    collapse_text,
    headline_tiles,
    method_of,
    scorecard_rows,
    short_name,
    summary_text,
    title_text,
    training_tokens,
)
from tests.report.synthetic_run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), num_steps=4, num_layers=2)


@pytest.fixture(scope="module")
def data(run: Path) -> RunData:
    return read_run(run)


def test_rows_carry_the_exact_numbers(run: Path, data: RunData) -> None:
    results = json.loads((run / RESULTS_FILE).read_text("utf-8"))
    rows = {row.label: row for row in scorecard_rows(data)}
    keys = {
        "Parameters": "parameters",
        "Weight files": "file_size_bytes",
        "Cross entropy": "cross_entropy",
        "Perplexity": "perplexity",
        "Bits per byte": "bits_per_byte",
        "Prefill": "prefill_tokens_per_second",
        "Decode": "decode_tokens_per_second",
    }
    for label, key in keys.items():
        teacher = rows[label].teacher
        assert teacher is not None
        assert teacher.exact == results["teacher"][key]
        assert rows[label].student.exact == results["student"][key]
    for label, key in {"KL to the teacher": "kl_to_teacher", "Top-5 agreement": "top5_agreement"}.items():
        assert rows[label].student.exact == results["student"][key]
        assert rows[label].teacher is None
    assert rows["Perplexity"].ratio == "2.32×"


def test_without_a_teacher_its_column_is_empty(tmp_path: Path) -> None:
    data = read_run(write_run(tmp_path, num_steps=1, num_layers=1, with_teacher=False))
    rows = scorecard_rows(data)
    assert all(row.teacher is None and row.ratio == "–" for row in rows)
    assert [tile.label for tile in headline_tiles(data)] == ["Parameters", "Hidden size", "Bits per byte"]
    assert title_text(data) == "A student of smollm2-135m-instruct at width 288"


def test_headline_of_a_scored_run(data: RunData) -> None:
    tiles = [(tile.label, tile.value.text, tile.note) for tile in headline_tiles(data)]
    assert tiles == [
        ("Parameters", "67.27 M", "teacher 134.5 M"),
        ("Hidden size", "288", "teacher 576"),
        ("KL to the teacher", "1.074", ""),
        ("Top-1 agreement", "50.9 %", ""),
        ("Bits per byte", "1.552", "teacher 1.269"),
    ]
    assert title_text(data) == "smollm2-135m-instruct, cloned from width 576 to 288"
    assert "67.3 M parameters to the teacher's 135 M" in summary_text(data)
    assert "KL from 1.50 to 1.07 nats" in summary_text(data)


def test_headline_of_a_run_in_training_is_the_last_held_out_measure(data: RunData) -> None:
    data = replace(data, results=None)
    tiles = headline_tiles(data)
    assert [tile.value.exact for tile in tiles] == [data.held_out[-1].kl, data.held_out[-1].top1_agreement]
    assert tiles[0].note == "1.50 before training"
    assert summary_text(data).startswith("The student was distilled on 8.19 k tokens from the calibrated start.")
    assert headline_tiles(replace(data, held_out=())) == []


def test_training_tokens_are_those_of_the_newest_line(data: RunData) -> None:
    assert training_tokens(data) == data.train[-1].tokens
    assert training_tokens(replace(data, train=(), held_out=())) is None


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("embedded:smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("owner/Model-3B", "Model-3B"),
        ("/a/b/model/", "model"),
        ("C:\\models\\student", "student"),
        ("plain", "plain"),
    ],
)
def test_short_name(name: str, short: str) -> None:
    assert short_name(name) == short


def test_a_collapsed_student_is_warned_of_by_its_last_measure(data: RunData) -> None:
    assert collapse_text(data) == collapse_text(replace(data, held_out=())) == ""
    last = replace(data.held_out[-1], has_collapsed=True, effective_rank_share=0.361)
    text = collapse_text(replace(data, held_out=(*data.held_out[:-1], last)))
    assert "has collapsed" in text
    assert "effective rank 36.1 % of what its width allows" in text
    first = replace(data.held_out[0], has_collapsed=True)
    assert collapse_text(replace(data, held_out=(first, *data.held_out[1:]))) == ""


@pytest.mark.parametrize(
    ("method", "done"),
    [
        ("only_kd", "was distilled on 8.19 k tokens from scratch."),
        ("tiny_bert", "was distilled on 8.19 k tokens from scratch."),
        ("origin", "was trained on 8.19 k tokens from scratch, without its teacher."),
    ],
)
def test_a_baseline_is_no_clone(data: RunData, method: Method, done: str) -> None:
    assert data.recipe is not None
    assert data.start is not None
    recipe, start = replace(data.recipe, method=method), replace(data.start, method="scratch")
    found = replace(data, recipe=recipe, start=start)
    assert (method_of(data), method_of(found), method_of(replace(found, recipe=None))) == ("clone", method, "clone")
    assert title_text(found) == f"smollm2-135m-instruct's shape at width 288, trained from scratch by {method}"
    assert title_text(replace(found, results=None)) == title_text(found)
    assert done in summary_text(found)
    assert "start" not in summary_text(found)
