"""What is kept is computed once, everything else twice; the three policies differ in bytes and in nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from benchmarks.speed.memory import kept_for_backward
from lrc.clone.sites import Variant
from lrc.config import CHECKPOINTING, Checkpointing
from lrc.models.kept_products import KeptProducts, is_kept
from lrc.models.pair_model import PairModel
from lrc.models.step_weights import StepWeights
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.test_pair import VARIANTS, batch, clipping_teacher, counts_of, fill_random, gradients, make_pair
from tests.tiny import tiny_teacher

LONG = (4, 64)
"""Rows and length at which activations outweigh a tiny layer's merged weights."""


def filled(policy: Checkpointing, *, tied: bool = False, variant: Variant = VARIANTS[0]) -> PairModel:
    pair = make_pair(tiny_teacher("llama", tie_word_embeddings=tied), 16, variant, lm_weight=0.5, clone_weight=0.7)
    fill_random(pair)
    pair.set_activation_checkpointing(policy)
    return pair


def step(pair: PairModel, *, merges_once: bool) -> dict[str, Tensor]:
    """Losses and gradients of two micro-batches."""
    weights = StepWeights(pair) if merges_once else None
    found = {}
    for seed in (0, 1):
        if weights is not None:
            weights.form()
        ids, labels, valid = batch(seed=seed)
        losses = pair(ids, labels, valid, counts_of(labels, valid))
        losses.objective.backward()
        found |= {f"{name}, {seed}": value.detach() for name, value in losses._asdict().items()}
    if weights is not None:
        weights.pull_back()
    return found | {name: value.grad for name, value in pair.trained().items() if value.grad is not None}


@pytest.mark.parametrize("merges_once", [False, True], ids=["micro-batch", "step"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
def test_losses_and_gradients_are_the_same_bits(variant: Variant, tied: bool, merges_once: bool) -> None:
    kept, *others = (
        step(filled(policy, tied=tied, variant=variant), merges_once=merges_once) for policy in CHECKPOINTING
    )
    assert any(name.startswith("projections") for name in kept)
    for other in others:
        assert other.keys() == kept.keys()
        for name, value in kept.items():
            assert torch.equal(other[name], value), name


def experts_with_biases() -> nn.Module:
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(FAMILY_CONFIGS["gpt_oss"]())
    with torch.no_grad():
        for parameter in teacher.parameters():  # biases are zero at first
            parameter.add_(0.1 * torch.randn_like(parameter))
    return teacher.eval().requires_grad_(False)


@pytest.mark.parametrize("policy", CHECKPOINTING[1:])
@pytest.mark.parametrize("make_teacher", [experts_with_biases, clipping_teacher], ids=["added bias", "clamp"])
def test_products_that_a_model_writes_into_give_the_same_bits(
    make_teacher: Callable[[], nn.Module], policy: Checkpointing
) -> None:
    found = []
    for each in ("none", policy):
        pair = make_pair(make_teacher(), 16)
        fill_random(pair)
        pair.set_activation_checkpointing(each)
        found.append(gradients(pair, *batch()))
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


@pytest.mark.parametrize("merges_once", [False, True], ids=["micro-batch", "step"])
@pytest.mark.parametrize("variant", VARIANTS[:2], ids=["all", "io"])
def test_each_policy_keeps_less_than_the_one_before(variant: Variant, merges_once: bool) -> None:
    def kept_by(policy: Checkpointing) -> int:
        pair = filled(policy, variant=variant)
        weights = StepWeights(pair)
        formed: list[Tensor] = []
        if merges_once:
            weights.form()
            formed = [tensor for part in pair.parts() for tensor in (part.formed or {}).values()]
        ids, labels, valid = batch(*LONG)
        inputs = [*pair.parameters(), *pair.buffers(), *formed, ids, labels, valid]
        counts = counts_of(labels, valid)
        return kept_for_backward(lambda: pair(ids, labels, valid, counts).objective, inputs)

    nothing, selective, layer = map(kept_by, CHECKPOINTING)
    assert layer < 0.5 * selective
    assert selective < 0.9 * nothing


def test_selective_runs_the_teacher_once_and_layer_twice() -> None:
    for policy, times in (("none", 1), ("selective", 1), ("layer", 2)):
        pair = filled(policy)  # type: ignore[arg-type]
        calls: list[str] = []
        for layer in pair.layers:
            layer.teacher.register_forward_hook(lambda *_, calls=calls: calls.append(""))
        step(pair, merges_once=False)
        assert len(calls) == 2 * times * len(pair.layers)


def test_a_second_run_gets_the_products_of_the_first() -> None:
    linear, inputs = nn.Linear(4, 3, bias=False), torch.randn(2, 4, requires_grad=True)
    kept, runs = KeptProducts(), []

    def region(value: Tensor) -> Tensor:
        with kept:
            product = linear(value)
            with kept.paused():
                beside = linear(value + 1)
            runs.append((product, beside))
            return (product.exp() * beside).sum()

    with torch.no_grad():
        plain = linear(inputs).exp() * linear(inputs + 1)
    total = checkpoint(region, inputs, use_reentrant=False)
    torch.testing.assert_close(total.detach(), plain.sum())
    with torch.no_grad():
        linear.weight.mul_(2)  # what is computed again sees it, what was kept does not
    total.backward()
    (first, beside), (second, other) = runs
    assert torch.equal(first, second)
    assert not torch.equal(beside, other)


def test_a_kept_product_is_copied_before_it_is_written_into() -> None:
    weight, inputs = torch.randn(4, 3), torch.randn(2, 4, requires_grad=True)
    kept = KeptProducts()

    def region(value: Tensor) -> Tensor:
        with kept:
            written, beside = value @ weight, value @ weight
            with kept.paused():
                written[0].add_(1)
            return (written.exp() * beside).sum()

    def plain(value: Tensor) -> Tensor:
        written = value @ weight
        return (written + torch.tensor([[1.0], [0.0]])).exp().mul(value @ weight).sum()

    (expected,) = torch.autograd.grad(plain(inputs), inputs)
    (found,) = torch.autograd.grad(checkpoint(region, inputs, use_reentrant=False), inputs)
    torch.testing.assert_close(found, expected)


def test_wide_products_and_cheap_operations_are_not_kept() -> None:
    aten = torch.ops.aten
    narrow, square, wide = (torch.empty(4, width) for width in (3, 4, 5))
    rows, bias = torch.empty(2, 4), torch.empty(5)
    assert is_kept(aten.mm.default, (rows, narrow))
    assert is_kept(aten.mm.default, (rows, square))
    assert not is_kept(aten.mm.default, (rows, wide))
    assert not is_kept(aten.addmm.default, (bias, rows, wide))
    assert not is_kept(aten.bmm.default, (rows[None], narrow[None]))
    assert not is_kept(aten.silu.default, (rows,))
    assert is_kept(aten._scaled_dot_product_flash_attention_for_cpu.default, ())
