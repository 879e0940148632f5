"""`lrc evaluate --tasks`: the score of a group that weighs its tasks alike, and prompts that a model can't hold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.metrics import mean_stderr, unweighted_mean_stderr

from lrc.config import EvaluateConfig
from lrc.evaluation.task_files import TaskFiles, stock_files, write_task_files
from lrc.evaluation.tasks import ModelScores, load_suite, open_manager
from lrc.verbs.evaluate import evaluate
from lrc.verbs.evaluate_tasks import compare
from lrc.verbs.task_settings import TaskSettings
from tests.evaluation.made_up_tasks import byte_model_folder, write_tasks_data

ACC = "acc,none"
STUDENT = {"piqa": [1.0, 0.0, 1.0, 1.0], "sciq": [0.0, 1.0]}
TEACHER = {"piqa": [1.0, 1.0, 1.0, 1.0], "sciq": [1.0, 1.0]}


@pytest.fixture
def files(tmp_path: Path) -> TaskFiles:
    data = write_tasks_data(tmp_path / "data", rows=4)
    (tmp_path / "files").mkdir()
    stock = stock_files(["piqa", "sciq"], None)
    return write_task_files(tmp_path / "files", data, ["piqa", "sciq"], stock=stock, cache_dir=tmp_path / "cache")


def scores(outcomes: dict[str, list[float]]) -> ModelScores:
    prompts = {task: [str(place) for place in range(len(values))] for task, values in outcomes.items()}
    each = {task: {ACC: values} for task, values in outcomes.items()}
    return ModelScores(metrics={"both": {ACC: math.nan}}, outcomes=each, prompts=prompts)


@pytest.mark.parametrize("is_pooled", [True, False])
def test_a_group_is_scored_as_the_library_weighs_it(files: TaskFiles, is_pooled: bool) -> None:
    weight = str(is_pooled).lower()
    text = f"group: both\ntask: [piqa, sciq]\naggregate_metric_list: [{{metric: acc, weight_by_size: {weight}}}]\n"
    (files.folder / "both.yaml").write_text(text)
    suite = load_suite(open_manager(files.folder), ["both"], num_fewshot=None, allow_code=False, files=files)
    (row,) = compare(suite, {"student": scores(STUDENT), "teacher": scores(TEACHER)})["scores"]
    metrics = {
        task: {ACC: sum(values) / len(values), "acc_stderr,none": mean_stderr(values), "sample_len": len(values)}
        for task, values in STUDENT.items()
    }
    theirs = suite.loaded["groups"]["both"].aggregate(metrics)
    assert row["student"]["value"] == pytest.approx(theirs[ACC])
    assert row["student"]["standard_error"] == pytest.approx(theirs["acc_stderr,none"])
    assert row["student"]["value"] == pytest.approx(4 / 6 if is_pooled else (3 / 4 + 1 / 2) / 2)
    assert row["difference"]["value"] == pytest.approx(-2 / 6 if is_pooled else -(1 / 4 + 1 / 2) / 2)
    if not is_pooled:
        changes = [[0.0, -1.0, 0.0, 0.0], [-1.0, 0.0]]
        error = unweighted_mean_stderr([mean_stderr(part) for part in changes])
        assert row["difference"]["standard_error"] == pytest.approx(error)


def test_prompts_that_a_model_can_not_hold_are_said_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tasks_data(tmp_path / "data", rows=4)
    student, teacher = (byte_model_folder(tmp_path / name, seed=seed) for seed, name in enumerate("st"))
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30}))
    chosen = TaskSettings(tasks="piqa", data_dir=str(data))
    path = evaluate(student, out=tmp_path / "out", teacher=str(teacher), settings=EvaluateConfig(), tasks=chosen)
    found: dict[str, Any] = json.loads(path.read_text())["tasks"]["truncated"]
    assert found["student"] > 0
    assert found["teacher"] == 0
    said = capsys.readouterr().err
    assert f"note: student: {found['student']} requests" in said
    assert "note: teacher" not in said
