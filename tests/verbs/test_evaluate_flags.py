"""The flags of `lrc evaluate`: what each becomes, and what is printed after."""

from pathlib import Path
from typing import Any

import pytest

from lrc.config import EvaluateConfig
from lrc.report import terminal
from lrc.training.launch import write_recipe
from lrc.verbs import evaluate as module
from lrc.verbs.evaluate_flags import evaluate_verb
from lrc.verbs.task_settings import NO_TASKS, TaskSettings
from tests.tiny import tiny_recipe

RESULTS = {"model": "m"}


class Calls:
    """Stands for the verb and for what prints its results."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.evaluated: list[tuple[str, dict[str, Any]]] = []
        self.printed: list[Any] = []
        monkeypatch.setattr(module, "evaluate", self.evaluate)
        monkeypatch.setattr(terminal, "print_scorecard", self.printed.append)

    def evaluate(self, model: str, **options: Any) -> Any:
        self.evaluated.append((model, options))
        return RESULTS


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def test_flags_that_are_not_given_are_the_recipes_defaults(calls: Calls) -> None:
    evaluate_verb("student", out=Path("out"))
    [(model, options)] = calls.evaluated
    assert model == "student"
    assert options == {
        "out": Path("out"),
        "held_out": None,
        "teacher": None,
        "settings": EvaluateConfig(),
        "tasks": NO_TASKS,
        "overwrite": False,
        "dry_run": False,
    }
    assert calls.printed == [RESULTS]


def test_every_flag_reaches_the_verb_under_its_own_name(calls: Calls) -> None:
    tasks = TaskSettings(tasks="piqa", limit=3)
    sizes = {"tokens": 11, "sequence_length": 12, "samples": 13}
    evaluate_verb("m", out=Path("o"), held_out="h", tasks=tasks, teacher="t", overwrite=True, **sizes)  # type: ignore[arg-type]
    [(_, options)] = calls.evaluated
    assert options["settings"] == EvaluateConfig(tokens=11, sequence_length=12, samples=13)
    assert (options["held_out"], options["teacher"], options["tasks"]) == ("h", "t", tasks)
    assert (options["overwrite"], options["dry_run"]) == (True, False)


def test_a_dry_run_prints_no_scorecard(calls: Calls) -> None:
    evaluate_verb("m", out=Path("o"), dry_run=True)
    assert calls.evaluated[0][1]["dry_run"] is True
    assert calls.printed == []


def test_flags_win_over_the_runs_recipe(calls: Calls, tmp_path: Path) -> None:
    student = tmp_path / "run" / "convert"
    student.mkdir(parents=True)
    (tmp_path / "run" / "train").mkdir()
    write_recipe(tmp_path / "run" / "train" / "recipe.yaml", tiny_recipe(tmp_path, evaluate__tokens=99))
    evaluate_verb(str(student), out=Path("o"), samples=1)
    settings = calls.evaluated[0][1]["settings"]
    assert (settings.tokens, settings.samples) == (99, 1)
