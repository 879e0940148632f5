"""The flags of `lrc evaluate`: what each becomes, and what is printed after."""

from pathlib import Path
from typing import Any

import pytest

from lrc.config import EvaluateConfig
from lrc.report import terminal
from lrc.verbs import evaluate as module
from lrc.verbs.evaluate_flags import evaluate_verb
from lrc.verbs.task_settings import NO_TASKS, TaskSettings

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
