"""What `lrc evaluate` refuses of the flags on benchmarks, and that nothing else is refused."""

from pathlib import Path
from typing import Any

import pytest

from lrc.verbs.task_settings import NO_TASKS, TaskSettings


@pytest.mark.parametrize(
    "settings",
    [
        NO_TASKS,
        TaskSettings(tasks="seed"),
        TaskSettings(tasks="piqa", batch_size="1", limit=1, num_fewshot=0, allow_code=True),
    ],
    ids=["none", "names alone", "least values"],
)
def test_what_fits_together_has_no_problem(settings: TaskSettings) -> None:
    assert settings.problems() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": "0"}, "--batch-size must be 'auto' or a number above 0, found '0'"),
        ({"batch_size": "-1"}, "--batch-size must be 'auto' or a number above 0, found '-1'"),
        ({"batch_size": "many"}, "--batch-size must be 'auto' or a number above 0, found 'many'"),
        ({"limit": 0}, "--limit must be at least 1, found 0"),
        ({"num_fewshot": -1}, "--num-fewshot must be at least 0, found -1"),
        ({"write_tasks": Path("absent")}, "--write-tasks writes task files for local data, so it needs --data-dir"),
    ],
)
def test_a_value_that_can_t_be_is_the_only_problem(changes: dict[str, Any], said: str) -> None:
    assert TaskSettings(tasks="seed", **changes).problems() == [said]


@pytest.mark.parametrize(
    "changes", [{"limit": 5}, {"num_fewshot": 0}, {"batch_size": "4"}, {"allow_code": True}, {"data_dir": "rows"}]
)
def test_every_other_flag_needs_names(changes: dict[str, Any]) -> None:
    (problem,) = TaskSettings(**changes).problems()
    assert "need --tasks" in problem


def test_all_problems_are_said_at_once() -> None:
    assert len(TaskSettings(batch_size="x", limit=0, num_fewshot=-1, write_tasks=Path("absent")).problems()) == 5


def test_task_files_go_to_a_folder_that_is_new_or_empty(tmp_path: Path) -> None:
    full, empty, file = tmp_path / "full", tmp_path / "empty", tmp_path / "file"
    full.mkdir()
    empty.mkdir()
    for path in (full / "mine", file):
        path.write_text("mine")

    def problems(folder: Path) -> list[str]:
        return TaskSettings(tasks="seed", data_dir="rows", write_tasks=folder).problems()

    assert problems(tmp_path / "new") == problems(empty) == []
    for taken in (full, file):
        assert problems(taken) == [f"--write-tasks must name a new folder, but {taken} exists"]
