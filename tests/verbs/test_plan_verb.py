"""`lrc plan`'s flags: each becomes the part of the question that it names."""

from pathlib import Path
from typing import Any

import pytest

from lrc.verbs import plan_costs as module
from lrc.verbs.plan_costs import Question
from lrc.verbs.plan_verb import plan_verb

Asked = list[tuple[str, tuple[str, ...], Question, dict[str, Any]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found: Asked = []

    def plan_costs(source: str, overrides: tuple[str, ...], question: Question, **options: Any) -> None:
        found.append((source, overrides, question, options))

    monkeypatch.setattr(module, "plan_costs", plan_costs)
    return found


def test_without_flags_the_question_is_the_usual_one(asked: Asked) -> None:
    plan_verb("recipe.yaml")
    assert asked == [("recipe.yaml", (), Question(), {"trust_remote_code": False})]
    assert Question().machine == "8xh100"


def test_every_flag_is_the_part_of_the_question_that_it_names(asked: Asked) -> None:
    plan_verb(
        "teacher",
        ("a.b=1", "c.d=2"),
        hidden_size=64,
        on="cpu",
        params="1B",
        fits="24GB",
        tokens="2B",
        mfu=0.5,
        json=Path("plan.json"),
        trust_remote_code=True,
    )
    question = Question(hidden_size=64, on="cpu", params="1B", fits="24GB", tokens="2B", mfu=0.5, out=Path("plan.json"))
    assert asked == [("teacher", ("a.b=1", "c.d=2"), question, {"trust_remote_code": True})]
