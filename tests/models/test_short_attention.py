"""Gradients of attention over short rows: exact to the rounding of their factors, and taken where they are faster."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import lrc.models.short_attention as module
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.ways import Bench
from lrc.config import CHECKPOINTING
from lrc.models.compiled import compile_layers
from lrc.models.pair_model import PairModel
from lrc.models.short_attention import LONGEST, ShortAttention, attention
from tests.models.test_pair import batch, fill_random, gradients, make_pair
from tests.tiny import tiny_teacher

BATCH, HEADS, WIDTH = 3, 4, 24
"""A width whose scale is no power of two: scaled factors would be rounded once more."""


def inputs(length: int, *, key_heads: int = HEADS, value_width: int = WIDTH) -> list[Tensor]:
    """Query, key, value and the gradient of the result, as models lay them out."""
    generator = torch.Generator().manual_seed(length)

    def normal(heads: int, width: int, size: float = 1.0) -> Tensor:
        return (size * torch.randn(BATCH, length, heads, width, generator=generator)).bfloat16().transpose(1, 2)

    query, key = normal(HEADS, WIDTH, 2.0), normal(key_heads, WIDTH, 2.0)
    return [query, key, normal(key_heads, value_width), normal(HEADS, value_width)]


def documents(length: int, window: int) -> Tensor:
    """A mask of two documents a row, their border elsewhere in each, with a sliding window."""
    place = torch.arange(length)
    document = torch.stack([(place >= length // 2 + 5 * row).int() for row in range(BATCH)])
    distance = place[:, None] - place
    return ((document[:, :, None] == document[:, None]) & (distance >= 0) & (distance < window))[:, None]


def bias_of(length: int) -> Tensor:
    """A mask that is added, another one for each head."""
    generator = torch.Generator().manual_seed(0)
    added = torch.randn(1, HEADS, length, length, generator=generator).bfloat16()
    return added.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))


def results(attend: Any, tensors: list[Tensor], **settings: Any) -> list[Tensor]:
    """The result and the gradients of query, key and value."""
    *leaves, grad = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    found = attend(*leaves, **settings)
    return [found.detach(), *torch.autograd.grad(found, leaves, grad.detach())]


def plain(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, scale: float) -> Tensor:
    """Attention by its formula."""
    shared = query.shape[1] // key.shape[1]
    scores = scale * query @ key.repeat_interleave(shared, 1).mT
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ value.repeat_interleave(shared, 1)


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the gradients taken by products."""
    counts: Counter[str] = Counter()
    product_gradients = module.attention_gradients

    def counted(*arguments: Any) -> Any:
        counts["products"] += 1
        return product_gradients(*arguments)

    monkeypatch.setattr(module, "attention_gradients", counted)
    return counts


CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "causal": (300, {}, {"is_causal": True}),
    "grouped": (130, {"key_heads": 2}, {"is_causal": True, "enable_gqa": True}),
    "scaled": (64, {}, {"is_causal": True, "scale": 0.3}),
    "documents": (300, {}, {"attn_mask": documents(300, 300)}),
    "windows": (290, {}, {"attn_mask": documents(290, 40)}),
    "added": (150, {}, {"attn_mask": bias_of(150)}),
    "values of another width": (140, {"value_width": 40}, {"is_causal": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_no_further_off_than_those_of_torch(
    case: str, taken: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCORES", 2 * HEADS * 128 * 128)  # several blocks of the batch's rows
    length, shape, settings = CASES[case]
    tensors = inputs(length, **shape)
    mask = settings.get("attn_mask", torch.ones(length, length, dtype=torch.bool).tril())
    mask = mask if mask.dtype == torch.bool else mask.double()
    exact = [tensor.double() for tensor in tensors]
    expected = results(plain, exact, mask=mask, scale=settings.get("scale", WIDTH**-0.5))
    ours = errors(results(attention, tensors, **settings), expected)
    assert taken["products"] == 1  # else torch's gradients would be compared with themselves
    torchs = errors(results(functional.scaled_dot_product_attention, tensors, **settings), expected)
    assert ours[0] == torchs[0]
    assert all(a <= max(b, 3e-3) for a, b in zip(ours, torchs, strict=True)), (ours, torchs)


def test_a_position_that_sees_nothing_has_no_gradient() -> None:
    mask = documents(140, 140)
    mask[1, :, :135] = False
    found = results(attention, inputs(140), attn_mask=mask)
    expected = results(functional.scaled_dot_product_attention, inputs(140), attn_mask=mask)
    assert not found[1][1, :, :135].any()
    for ours, torchs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), torchs.float(), atol=0.05, rtol=0.05)


def test_long_rows_float32_dropout_and_masks_with_a_gradient_are_left_to_torch(taken: Counter[str]) -> None:
    def runs(tensors: list[Tensor], **settings: Any) -> int:
        before = taken["products"]
        results(attention, tensors, **settings)
        return taken["products"] - before

    short = inputs(20)
    assert runs(short, is_causal=True) == 1
    assert runs([tensor.float() for tensor in short], is_causal=True) == 0
    assert runs(inputs(LONGEST), is_causal=True) == 1
    assert runs(inputs(LONGEST + 1), is_causal=True) == 0
    assert runs(short, is_causal=True, dropout_p=0.5) == 0
    assert runs(short, attn_mask=bias_of(20).clamp(min=-9.0).requires_grad_()) == 0


def test_functions_run_as_ever_outside_and_without_gradients(taken: Counter[str]) -> None:
    query, key, value, _ = (tensor.requires_grad_() for tensor in inputs(20))
    functional.scaled_dot_product_attention(query, key, value).sum().backward()
    with ShortAttention(), torch.no_grad():
        functional.scaled_dot_product_attention(query, key, value)
    assert taken["products"] == 0
    with ShortAttention():
        functional.scaled_dot_product_attention(query, key, value).sum().backward()
    assert taken["products"] == 1


def filled(policy: Any = "none") -> PairModel:
    pair = make_pair(tiny_teacher("llama").bfloat16(), 16, lm_weight=0.5, clone_weight=0.7)
    fill_random(pair)
    pair.set_activation_checkpointing(policy)
    return pair


def test_a_pairs_gradients_are_the_same_bits_under_every_checkpointing(taken: Counter[str]) -> None:
    expected = gradients(filled(), *batch())
    assert taken["products"] == len(filled().layers)
    for policy in CHECKPOINTING:
        found = gradients(filled(policy), *batch())
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_selective_checkpointing_attends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    original = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls["attention"] += func is original
            return func(*args, **(kwargs or {}))

    for policy, times in (("none", 2), ("selective", 2), ("layer", 4)):
        pair = filled(policy)
        calls.clear()
        with Count():
            gradients(pair, *batch())
        assert calls["attention"] == times * len(pair.layers), policy


@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning")
def test_compiled_layers_take_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(line: str) -> None:
        raise AssertionError(line)

    kinds: Counter[str] = Counter()
    fill = module._fill

    def counted(*arguments: Any, **settings: Any) -> None:
        kinds["blocks"] += 1
        fill(*arguments, **settings)

    monkeypatch.setattr(module, "_fill", counted)
    torch._dynamo.reset()
    try:
        pair = filled()
        compile_layers(pair, refuse, backend="aot_eager")
        found = gradients(pair, *batch())
        assert kinds["blocks"] == len(pair.layers)
    finally:
        torch._dynamo.reset()
    for name, value in gradients(filled(), *batch()).items():
        assert float((found[name] - value).norm()) <= 0.02 * float(value.norm()), name


def test_the_floors_models_are_stock(taken: Counter[str]) -> None:
    bench = Bench(SHAPES["tiny"], dtype=torch.bfloat16, device=torch.device("cpu"), most_batches=1)
    bench.floor_teacher()
    bench.floor_student()
    bench.plain()
    assert taken["products"] == 0
    bench.ours(1)
    assert taken["products"] == SHAPES["tiny"].layers
    bench.floor_student()
    assert taken["products"] == SHAPES["tiny"].layers
