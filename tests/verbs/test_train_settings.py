"""What the recipe asks of a training run is what runs: compiled layers, recomputation, one merge a step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.config import CHECKPOINTING, Checkpointing, Merge, Recipe
from lrc.models.pair import PairLayer
from lrc.models.pair_model import PairModel
from lrc.models.step_weights import StepWeights
from lrc.verbs.train import train
from tests.tiny import tiny_recipe


@pytest.fixture(autouse=True)
def no_oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check before a run, which runs pairs of its own."""
    monkeypatch.setattr("lrc.verbs.train.require_family", lambda config: None)


def short(root: Path, **changes: Any) -> Recipe:
    """Two steps from a random start, nothing held out."""
    return tiny_recipe(root, start__method="random", data__held_out=None, train__max_steps=2, **changes)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_the_layers_of_the_pair_that_trains_are_compiled_if_the_recipe_says_so(
    tmp_path: Path, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[PairModel] = []
    trained: list[PairModel] = []
    forward = PairModel.forward

    def watched(self: PairModel, *arguments: Any) -> Any:
        trained.append(self)
        return forward(self, *arguments)

    monkeypatch.setattr("lrc.verbs.train.compile_layers", lambda pair, tell: compiled.append(pair))
    monkeypatch.setattr(PairModel, "forward", watched)
    train(short(tmp_path, train__compile=is_compiled))
    assert len(trained) == 2
    assert [pair is trained[0] for pair in compiled] == ([True] if is_compiled else [])


@pytest.mark.parametrize("policy", CHECKPOINTING)
def test_layers_are_recomputed_as_the_recipe_says(
    tmp_path: Path, policy: Checkpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Checkpointing] = []
    forward = PairLayer.forward

    def watched(self: PairLayer, student_stream: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():  # else a check before the run
            seen.append(self.checkpointing)
        return forward(self, student_stream, *args, **kwargs)

    monkeypatch.setattr(PairLayer, "forward", watched)
    train(short(tmp_path, train__activation_checkpointing=policy))
    assert seen == [policy] * 4  # two layers, two steps


@pytest.mark.parametrize(
    ("merge", "micro_batches", "merges"),
    [
        ("step", 1, [True, True]),
        ("step", 2, [True, False, True, False]),
        ("auto", 2, [True, False, True, False]),
        ("auto", 1, []),
        ("micro_batch", 2, []),
    ],
)
def test_weights_are_merged_once_a_step_where_the_recipe_says_so(
    tmp_path: Path, merge: Merge, micro_batches: int, merges: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []
    steps: list[StepWeights] = []
    form, pull_back = StepWeights.form, StepWeights.pull_back

    def watched_form(self: StepWeights) -> None:
        found.append(not self._formed)  # else the step's weights are there
        form(self)

    def watched_pull_back(self: StepWeights) -> None:
        steps.append(self)
        pull_back(self)

    monkeypatch.setattr(StepWeights, "form", watched_form)
    monkeypatch.setattr(StepWeights, "pull_back", watched_pull_back)
    train(short(tmp_path, train__merge=merge, train__gradient_accumulation_steps=micro_batches))
    assert found == merges
    assert len(steps) == sum(merges)
