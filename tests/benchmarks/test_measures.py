"""Benchmark tasks at a point of the curve: the published ones whose rows are there, each with its error."""

from pathlib import Path

import pytest
import torch

from benchmarks.arena.measures import PointMeasure, Tasks, spread_indexes
from lrc.errors import ConfigError
from lrc.models.teacher import load_model, load_tokenizer
from tests.evaluation.made_up_tasks import MAKERS, byte_model_folder, write_rows, write_tasks_data


@pytest.mark.slow
def test_tasks_are_the_published_ones_whose_rows_are_there(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    data = write_tasks_data(tmp_path / "data")
    for name in MAKERS:
        if name not in ("arc_easy", "piqa"):
            (data / f"{name}.jsonl").unlink()
    (data / "mmlu.jsonl").unlink()
    write_rows(data / "unknown.jsonl", [{"x": 1}])
    tasks = Tasks(data=str(data), limit=8)
    assert tasks.names() == ["arc_easy", "piqa"]
    folder = byte_model_folder(tmp_path / "model")
    model = load_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    scores = tasks.score(model, load_tokenizer(folder))  # type: ignore[arg-type]
    assert list(scores["tasks"]) == ["arc_easy", "piqa"]
    values = [entry["value"] for entry in scores["tasks"].values()]
    assert all(8 * value == pytest.approx(round(8 * value)) for value in values)
    assert scores["average"]["value"] == pytest.approx(sum(values) / 2)
    assert scores["average"]["standard_error"] > 0


def test_a_folder_without_any_published_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold NAME\.jsonl of at least one of arc_easy"):
        Tasks(data=str(tmp_path), limit=None).names()


def test_nothing_is_measured_between_the_points() -> None:
    measure = PointMeasure({}, steps={0, 4}, tokenizer=None, tasks=None, task_steps=set())
    assert measure(None, 3) == {}  # type: ignore[arg-type]


def test_measured_windows_are_spread_over_a_text() -> None:
    assert spread_indexes(390, 4) == [0, 97, 195, 292]
    assert spread_indexes(5, 4) == [0, 1, 2, 3]
    assert spread_indexes(3, 16) == [0, 1, 2]
