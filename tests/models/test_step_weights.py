"""Weights merged once a step give the losses and gradients of weights merged in every micro-batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone import merge as merging
from lrc.clone.sites import Variant
from lrc.config import CHECKPOINTING, Checkpointing
from lrc.models import part
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.step_weights import StepWeights
from tests.models.test_pair import VARIANTS, fill_random, make_pair
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher

MICRO_BATCHES, ROWS, LENGTH = 3, 2, 7
COUNTS = StepCounts(labels=36, positions=42, sequences=6)


def filled_pair(family: str, variant: Variant, dtype: torch.dtype = torch.float64) -> PairModel:
    pair = make_pair(tiny_teacher(family).to(dtype), 16, variant)
    fill_random(pair)
    return pair.train()


def step(pair: PairModel, weights: StepWeights | None) -> tuple[list[float], dict[str, Tensor]]:
    """One step's shares of the objective and the gradients that it leaves."""
    objectives = []
    ids = torch.randint(4, 48, (MICRO_BATCHES, ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
    for rows in ids:
        if weights is not None:
            weights.form()
        labels = rows.roll(-1, 1)
        labels[:, -1] = -100
        losses = pair(rows, labels, torch.ones_like(rows, dtype=torch.bool), COUNTS)
        losses.objective.backward()
        objectives.append(float(losses.objective.detach()))
    if weights is not None:
        weights.pull_back()
    gradients = {name: value.grad for name, value in pair.trained().items() if value.grad is not None}
    pair.zero_grad()
    return objectives, gradients


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_merging_in_each_micro_batch(
    family: str, variant: Variant, checkpointing: Checkpointing
) -> None:
    pair = filled_pair(family, variant)
    pair.set_activation_checkpointing(checkpointing)
    expected_losses, expected = step(pair, None)
    for merges_again in (False, True):
        weights = StepWeights(pair, merges_again=merges_again)
        for _ in range(2):  # the second step must not see the first one's weights or gradients
            losses, gradients = step(pair, weights)
            assert losses == pytest.approx(expected_losses, rel=1e-6)
            assert gradients.keys() == expected.keys() == pair.trained().keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_step_merges_every_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    merged: list[torch.Size] = []

    def counting(weight: Tensor, projection: Tensor, axis: int) -> Tensor:
        merged.append(weight.shape)
        return merging.merge(weight, projection, axis)

    monkeypatch.setattr(part, "merge", counting)
    pair = filled_pair("llama", Variant())
    # enough positions for the head's gradient to go through its merge
    step(pair, StepWeights(pair, micro_batches=MICRO_BATCHES))
    once = len(merged)
    step(pair, None)
    assert once == 2 * 7 + 1  # two layers and the head; embedding rows are merged elsewhere
    assert len(merged) == (1 + MICRO_BATCHES) * once
    step(pair, StepWeights(pair, micro_batches=MICRO_BATCHES, merges_again=True))
    assert len(merged) == (1 + MICRO_BATCHES + 2) * once


def test_the_next_step_sees_the_moved_projections() -> None:
    pair = filled_pair("llama", Variant())
    weights = StepWeights(pair)
    before, _ = step(pair, weights)
    with torch.no_grad():
        for value in pair.trained().values():
            value.mul_(1.1)
    after, _ = step(pair, weights)
    fresh, _ = step(pair, None)
    assert after == pytest.approx(fresh, rel=1e-6)
    assert after != pytest.approx(before, rel=1e-3)


def test_gradients_of_bfloat16_weights_are_added_up_in_float32() -> None:
    pair = filled_pair("llama", Variant(), torch.bfloat16)
    weights = StepWeights(pair)
    weights.form()
    leaves = [leaf for _, _, formed in weights._formed for leaf in formed.values()]
    for leaf in leaves:
        leaf.backward(torch.full_like(leaf, 1.0))
        leaf.backward(torch.full_like(leaf, 2**-9))  # half of what bfloat16 can tell from one
    assert {leaf.dtype for leaf in leaves} == {torch.bfloat16}
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in leaves)
    assert all(bool((leaf.grad == 1 + 2**-9).all()) for leaf in leaves if leaf.grad is not None)


@pytest.mark.parametrize("merges_again", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_float32_reader_of_a_bfloat16_teacher_is_pulled_back_beside_the_others(
    variant: Variant, merges_again: bool
) -> None:
    teacher: Any = tiny_teacher("llama").to(torch.bfloat16)
    for layer in teacher.model.layers:
        layer.mlp.gate_proj.float()
    pair = make_pair(teacher, 16, variant)
    fill_random(pair)
    for each in pair.parts():
        merged = each.merged_tensors() if each.is_merged_whole else {}
        if merged:
            torch.autograd.backward(list(merged.values()), [torch.ones_like(value) for value in merged.values()])
    expected = {name: value.grad for name, value in pair.trained().items() if value.grad is not None}
    pair.zero_grad()
    weights = StepWeights(pair, merges_again=merges_again)
    weights.form()
    leaves = [leaf for _, _, formed in weights._formed for leaf in formed.values()]
    assert {leaf.dtype for leaf in leaves} == {torch.bfloat16, torch.float32}
    for leaf in leaves:
        leaf.backward(torch.ones_like(leaf))
    weights.pull_back()
    found = {name: value.grad for name, value in pair.trained().items() if value.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_step_that_is_given_up_leaves_nothing_behind() -> None:
    pair = filled_pair("llama", Variant())
    weights = StepWeights(pair)
    weights.form()
    weights.pull_back()
    assert all(each.formed is None for each in pair.parts())
    assert all(value.grad is None for value in pair.trained().values())
