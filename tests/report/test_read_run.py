"""A run folder is read whole; what is missing stays out, what is damaged is named."""

import json
import shutil
from pathlib import Path

import pytest

from lrc.errors import ConfigError, DataError
from lrc.report.read_run import (
    FINE_TUNED_FILE,
    METRICS_FILE,
    PARITY_FILE,
    RECIPE_FILE,
    RESULTS_FILE,
    START_FILE,
    read_fine_tuned,
    read_run,
)
from tests.report.synthetic_run import ALL_TERMS, manifest_values, sft_values, write_json, write_lines, write_run

FILES = (RECIPE_FILE, START_FILE, METRICS_FILE, PARITY_FILE, RESULTS_FILE, FINE_TUNED_FILE)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo", num_steps=8, log_steps=2, num_layers=3)


def test_whole_run_is_read(run: Path) -> None:
    data = read_run(run)
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text("utf-8").splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert [point.step for point in data.train] == [2, 4, 6, 8]
    assert data.train[1].kl_loss == train[1]["kl_loss"]
    assert data.train[1].clone == {term: tuple(train[1]["clone"][term]) for term in ALL_TERMS}
    assert [point.step for point in data.held_out] == [0, 2, 4, 6, 8]
    results = json.loads((run / RESULTS_FILE).read_text("utf-8"))
    assert data.results is not None
    assert data.results.kl_to_teacher == results["student"]["kl_to_teacher"]
    assert data.results.samples[1].prompt == results["samples"][1]["prompt"]
    assert data.start is not None
    assert data.parity is not None
    assert data.parity.passed
    assert data.recipe is not None
    assert data.recipe.student.hidden_size == 288
    assert data.recipe_text == (run / RECIPE_FILE).read_text("utf-8")


@pytest.mark.parametrize("missing", FILES)
def test_any_single_file_may_be_missing(run: Path, missing: str) -> None:
    (run / missing).unlink()
    data = read_run(run)
    assert (data.results is None) == (missing == RESULTS_FILE)
    assert (data.start is None) == (missing == START_FILE)
    assert (data.parity is None) == (missing == PARITY_FILE)
    assert (data.recipe is None) == (missing == RECIPE_FILE)
    assert (data.fine_tuned is None) == (missing == FINE_TUNED_FILE)
    assert (not data.train) == (missing == METRICS_FILE)


@pytest.mark.parametrize("missing", [START_FILE, PARITY_FILE, RESULTS_FILE, FINE_TUNED_FILE])
def test_cut_file_is_named_with_its_line(run: Path, missing: str) -> None:
    path = run / missing
    content = path.read_text("utf-8")
    path.write_text(content[: len(content) // 2], encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_run(run)
    num_lines = len(content[: len(content) // 2].splitlines())
    assert any(f"{path}, line {line}: " in str(caught.value) for line in (num_lines, num_lines + 1))


def test_cut_metrics_line_is_named(run: Path) -> None:
    with (run / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    num_lines = len((run / METRICS_FILE).read_text("utf-8").splitlines())
    with pytest.raises(DataError, match=f"metrics.jsonl, line {num_lines}: must be JSON"):
        read_run(run)


def test_unknown_kind_of_line_is_refused(run: Path) -> None:
    write_lines(run / METRICS_FILE, [{"kind": "other", "step": 1}])
    with pytest.raises(DataError, match=r"metrics.jsonl, line 1: 'kind' must be 'train' or 'held_out', found 'other'"):
        read_run(run)


def test_recipe_with_an_unknown_key_is_refused(run: Path) -> None:
    with (run / RECIPE_FILE).open("a", encoding="utf-8") as file:
        file.write("surprise: 1\n")
    with pytest.raises(ConfigError, match="surprise"):
        read_run(run)


def test_later_line_of_a_step_wins(run: Path) -> None:
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text("utf-8").splitlines()]
    again = [{**line, "kl_loss": 9.0} for line in lines if line["kind"] == "train" and line["step"] == 4]
    write_lines(run / METRICS_FILE, lines + again)
    assert [(point.step, point.kl_loss == 9.0) for point in read_run(run).train] == [
        (2, False),
        (4, True),
        (6, False),
        (8, False),
    ]


def test_start_gives_step_0_where_the_metrics_have_none(run: Path) -> None:
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text("utf-8").splitlines()]
    write_lines(run / METRICS_FILE, [line for line in lines if line["step"] > 0])
    start = json.loads((run / START_FILE).read_text("utf-8"))
    first = read_run(run).held_out[0]
    assert (first.step, first.tokens, first.kl) == (0, 0, start["held_out"]["kl"])


def test_nothing_to_report_says_what_must_run_first(run: Path) -> None:
    shutil.rmtree(run / "evaluate")
    (run / METRICS_FILE).write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)lrc train.*lrc evaluate"):
        read_run(run)
    with pytest.raises(DataError, match="is not a folder"):
        read_run(run / "absent")


def test_results_of_tasks_alone_are_read(run: Path) -> None:
    path = run / "evaluate/results.json"
    whole = json.loads(path.read_text("utf-8"))
    write_json(path, {key: whole[key] for key in ("tasks", "versions", "machine")})
    data = read_run(run)
    assert data.results is None
    assert data.tasks is not None
    assert [row.task for row in data.tasks.scores] == ["arc_easy", "logiqa"]


def train_on(run: Path, data: Path) -> None:
    """Let the recipe name this training data."""
    recipe = (run / RECIPE_FILE).read_text("utf-8")
    (run / RECIPE_FILE).write_text(recipe.replace("train: train.jsonl", f"train: {data}"), "utf-8")


def test_sources_are_those_of_the_training_data_where_it_still_is(run: Path, tmp_path: Path) -> None:
    write_json(run / "prepare/manifest.json", manifest_values())
    values = manifest_values()
    values["sources"].pop()
    write_json(tmp_path / "data/manifest.json", values)
    train_on(run, tmp_path / "data")
    assert [source.kept for source in read_run(run).sources] == [640]


def test_a_runs_own_manifest_tells_of_its_own_data_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_run(run).sources == ()
    write_json(run / "prepare/manifest.json", manifest_values())
    assert read_run(run).sources == (), "the recipe names other data"
    train_on(run, Path("runs/demo/prepare"))
    assert [source.kept for source in read_run(run).sources] == [640, 49], "the run was moved"
    (run / RECIPE_FILE).unlink()
    assert [source.kept for source in read_run(run).sources] == [640, 49], "no recipe names the data"


def test_fine_tuning_is_read_with_as_much_as_was_measured(run: Path) -> None:
    found = read_fine_tuned(run / FINE_TUNED_FILE)
    assert (found.cross_entropy, found.kl) == ((3.1234, 2.3456), (0.9876, 0.6543))
    assert (found.rows, found.sequences, found.left_out, found.truncated) == (1204, 1200, 4, 31)
    values = sft_values()
    for moment in ("before", "after"):
        del values["held_out"][moment]["kl"]
    write_json(run / FINE_TUNED_FILE, values)
    found = read_fine_tuned(run / FINE_TUNED_FILE)
    assert (found.cross_entropy, found.kl) == ((3.1234, 2.3456), None)
    write_json(run / FINE_TUNED_FILE, {**values, "held_out": None})
    found = read_fine_tuned(run / FINE_TUNED_FILE)
    assert (found.cross_entropy, found.kl) == (None, None)


def test_held_out_lines_of_older_versions_have_no_ranks(run: Path) -> None:
    new = ("effective_rank", "teacher_effective_rank", "effective_rank_share", "has_collapsed")
    lines = [json.loads(line) for line in (run / METRICS_FILE).read_text("utf-8").splitlines()]
    assert read_run(run).held_out[-1].effective_rank is not None
    write_lines(run / METRICS_FILE, [{key: line[key] for key in line if key not in new} for line in lines])
    last = read_run(run).held_out[-1]
    assert (last.effective_rank, last.effective_rank_share, last.has_collapsed) == (None, None, False)
