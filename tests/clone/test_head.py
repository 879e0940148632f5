"""The chunked head equals the plain formula, value and every gradient, and never holds `[tokens, vocabulary]`."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrc.clone import head
from lrc.clone.head import IGNORED_LABEL, HeadWeights, chunk_positions, head_losses, is_cheaper_straight, softcapped
from tests.clone.head_inputs import (
    D_STUDENT,
    D_TEACHER,
    POSITIONS,
    UPSTREAM,
    VOCABULARY,
    Inputs,
    each_softcap,
    each_temperature,
    each_weighting,
    make_inputs,
    plain_losses,
)


@pytest.mark.parametrize("chunk", [1, 3, POSITIONS, 5 * POSITIONS, None])
@each_weighting
@each_temperature
@each_softcap
def test_value_and_gradients_equal_the_plain_formula(
    chunk: int | None, lm: float, kl: float, temperature: float, softcap: float | None
) -> None:
    weights = HeadWeights(lm=lm, kl=kl, temperature=temperature, softcap=softcap)
    inputs = make_inputs()
    losses, expected = inputs.losses(weights, chunk), plain_losses(inputs, weights)
    for found, wanted in zip(losses, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    for found, wanted in zip(inputs.gradients(losses[0]), inputs.gradients(expected[0]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_the_value_is_the_one_worked_out_by_hand() -> None:
    one, eight = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    # student logits 0, log 3: probabilities 1/4, 3/4; teacher logits 0, 0: 1/2, 1/2; label 1
    total, lm, kl = head_losses(
        one * torch.log(torch.tensor(3.0, dtype=torch.float64)),
        one * 0,
        eight,
        eight,
        torch.tensor([1]),
        weights=HeadWeights(lm=2.0, kl=5.0),
    )
    log = torch.log(torch.tensor([4 / 3, 2.0, 2 / 3], dtype=torch.float64))
    assert lm.item() == pytest.approx(log[0].item(), rel=1e-12)
    assert kl.item() == pytest.approx((log[1] + log[2]).item() / 2, rel=1e-12)
    assert total.item() == pytest.approx(2 * lm.item() + 5 * kl.item(), rel=1e-12)


@each_weighting
@each_temperature
@each_softcap
def test_gradients_agree_with_finite_differences(
    lm: float, kl: float, temperature: float, softcap: float | None
) -> None:
    inputs = make_inputs()
    # a large KL weight at T 40, where KL is tiny, so that a wrong gradient stands out of the tolerance
    weights = HeadWeights(lm=lm, kl=kl * temperature**2, temperature=temperature, softcap=softcap)

    def total(student: Tensor, student_head: Tensor) -> Tensor:
        return head_losses(
            student, inputs.teacher, student_head, inputs.teacher_head, inputs.labels, weights=weights, chunk=3
        )[0]

    assert torch.autograd.gradcheck(total, (inputs.student, inputs.student_head))


@pytest.mark.parametrize("chunk", [2, POSITIONS])
@each_temperature
@each_softcap
def test_an_all_masked_batch_gives_exactly_zero_value_and_gradients(
    chunk: int, temperature: float, softcap: float | None
) -> None:
    inputs = make_inputs(masked=tuple(range(POSITIONS)))
    losses = inputs.losses(HeadWeights(lm=1.0, kl=1.0, temperature=temperature, softcap=softcap), chunk)
    for loss in losses:
        assert torch.equal(loss, torch.zeros_like(loss))
    for gradient, tensor in zip(inputs.gradients(losses[0]), (inputs.student, inputs.student_head), strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_a_batch_without_positions_gives_zero() -> None:
    inputs = make_inputs(positions=0, masked=())
    losses = inputs.losses(HeadWeights(lm=1.0, kl=1.0), None)
    assert losses[0].item() == 0
    assert not inputs.gradients(losses[0])[1].any()


def test_masked_positions_change_nothing() -> None:
    weights = HeadWeights(lm=1.0, kl=1.0, temperature=2.0)
    whole = make_inputs()
    keep = whole.labels != IGNORED_LABEL
    assert whole.teacher is not None
    few = Inputs(
        student=whole.student.detach()[keep].requires_grad_(),
        teacher=whole.teacher[keep],
        student_head=whole.student_head,
        teacher_head=whole.teacher_head,
        labels=whole.labels[keep],
    )
    long, short = whole.losses(weights, 2), few.losses(weights, 2)
    torch.testing.assert_close(long[0], short[0], rtol=0, atol=1e-12)
    (long_hidden, long_head), (short_hidden, short_head) = whole.gradients(long[0]), few.gradients(short[0])
    torch.testing.assert_close(long_head, short_head, rtol=0, atol=1e-12)
    torch.testing.assert_close(long_hidden[keep], short_hidden, rtol=0, atol=1e-12)
    assert not long_hidden[~keep].any()
    assert not torch.stack(long[1:])[:, ~keep].any()


@pytest.mark.parametrize("trained", ["student", "student_head"])
def test_a_gradient_is_made_for_what_asks_for_one(trained: str) -> None:
    weights = HeadWeights(lm=1.0, kl=1.0)
    inputs = make_inputs()
    both = dict(zip(("student", "student_head"), inputs.gradients(inputs.losses(weights, 2)[0]), strict=True))
    frozen = "student_head" if trained == "student" else "student"
    setattr(inputs, frozen, getattr(inputs, frozen).detach())
    (UPSTREAM * inputs.losses(weights, 2)[0]).backward()
    torch.testing.assert_close(getattr(inputs, trained).grad, both[trained], rtol=0, atol=1e-12)
    assert getattr(inputs, frozen).grad is None


def test_no_gradient_reaches_the_teacher_or_runs_through_the_reported_losses() -> None:
    inputs = make_inputs()
    assert inputs.teacher is not None
    inputs.teacher.requires_grad_()
    inputs.teacher_head.requires_grad_()
    total, lm, kl = inputs.losses(HeadWeights(lm=1.0, kl=1.0), 2)
    total.backward()
    assert inputs.teacher.grad is None
    assert inputs.teacher_head.grad is None
    assert not lm.requires_grad
    assert not kl.requires_grad


@each_temperature
def test_a_student_that_equals_the_teacher_has_no_kl(temperature: float) -> None:
    inputs = make_inputs()
    inputs.teacher, inputs.teacher_head = inputs.student.detach(), inputs.student_head.detach()
    total = inputs.losses(HeadWeights(lm=0.0, kl=1.0, temperature=temperature), 3)[0]
    assert abs(total.item()) < 1e-14
    assert all(gradient.abs().max() < 1e-14 for gradient in inputs.gradients(total))


class LargestTensor(TorchDispatchMode):
    """Records the element count of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple | list) else (result,):
            if isinstance(output, Tensor):
                self.numel = max(self.numel, output.numel())
        return result


def largest_tensor(chunk: int | None, positions: int, softcap: float | None) -> int:
    """Run a step of the head, forward and backward, and return the size of its largest tensor."""
    inputs = make_inputs(positions=positions)
    weights = HeadWeights(lm=1.0, kl=1.0, temperature=2.0, softcap=softcap)
    largest = LargestTensor()  # type: ignore[no-untyped-call]  # the base class in torch has no annotations
    with largest:
        inputs.losses(weights, chunk)[0].backward()
    return largest.numel


@each_softcap
def test_no_tensor_holds_logits_of_more_than_a_chunk(softcap: float | None) -> None:
    positions = 60
    others = max(VOCABULARY * D_TEACHER, positions * D_TEACHER)
    for chunk in (1, 8, 20):
        assert largest_tensor(chunk, positions, softcap) <= max(chunk * VOCABULARY, others)
        assert largest_tensor(chunk, positions, softcap) < positions * VOCABULARY
    # the probe sees what it is there to see
    assert largest_tensor(positions, positions, softcap) == positions * VOCABULARY


def test_the_default_chunk_holds_the_stated_bytes_of_float32_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_POSITIONS", 1)
    monkeypatch.setattr(head, "CHUNK_BYTES", 8 * 4 * VOCABULARY)
    assert largest_tensor(None, 60, None) == largest_tensor(8, 60, None)
    monkeypatch.setattr(head, "CHUNK_BYTES", 40 * 4 * VOCABULARY)
    assert largest_tensor(None, 60, None) == 30 * VOCABULARY  # two alike
    monkeypatch.setattr(head, "CHUNK_POSITIONS", 60)  # at least
    assert largest_tensor(None, 60, None) == 60 * VOCABULARY


def test_chunks_of_a_batch_are_alike() -> None:
    words = head.CHUNK_BYTES // (4 * 341)
    assert [chunk_positions(words, positions=count) for count in (0, 1, 341, 342, 1024)] == [1, 1, 341, 171, 256]
    assert [chunk_positions(2**22, positions=count) for count in (3, 256, 257)] == [3, 256, 129]  # 256 at least


def test_a_vocabulary_larger_than_a_chunk_is_read_a_position_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weights = make_inputs(), HeadWeights(lm=1.0, kl=1.0)
    expected = inputs.losses(weights, 1)[0]
    monkeypatch.setattr(head, "CHUNK_POSITIONS", 1)
    monkeypatch.setattr(head, "CHUNK_BYTES", 1)
    assert torch.equal(inputs.losses(weights, None)[0], expected)


def test_between_forward_and_backward_only_the_gradients_are_kept() -> None:
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    inputs = make_inputs()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inputs.losses(HeadWeights(lm=1.0, kl=1.0), 2)
    assert sorted(kept) == sorted([(POSITIONS, D_STUDENT), (VOCABULARY, D_STUDENT)])


def test_softcapped_bounds_logits_and_none_leaves_them() -> None:
    logits = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], dtype=torch.float64)
    assert softcapped(logits, None) is logits
    capped = softcapped(logits, 30.0)
    one = 30 * math.tanh(1 / 30)
    assert capped.tolist() == pytest.approx([-30, -one, 0, one, 30], rel=1e-12)


@pytest.mark.parametrize("chunk", [3, None])
@each_weighting
@each_softcap
def test_a_gradient_past_the_merge_is_the_one_through_it(
    chunk: int | None, lm: float, kl: float, softcap: float | None
) -> None:
    inputs, weights = make_inputs(), HeadWeights(lm=lm, kl=kl, temperature=2.0, softcap=softcap)
    projection = torch.randn(D_TEACHER, D_STUDENT, dtype=torch.float64, requires_grad=True)
    merged = inputs.teacher_head @ projection
    wanted, *_ = plain_losses(dataclasses.replace(inputs, student_head=merged), weights)
    found, *_ = head_losses(
        inputs.student,
        inputs.teacher,
        merged.detach(),
        inputs.teacher_head,
        inputs.labels,
        weights=weights,
        projection=projection,
        chunk=chunk,
    )
    for ours, plain in zip(
        torch.autograd.grad(UPSTREAM * found, [inputs.student, projection]),
        torch.autograd.grad(UPSTREAM * wanted, [inputs.student, projection]),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("sizes", "turn"), [((49_152, 576, 288), 24_576), ((128_256, 3072, 1536), 64_128), ((1000, 60, 20), 53)]
)
def test_the_head_goes_straight_up_to_the_positions_where_both_ways_cost_the_same(
    sizes: tuple[int, int, int], turn: int
) -> None:
    assert is_cheaper_straight(*sizes, positions=turn - 1)
    assert not is_cheaper_straight(*sizes, positions=turn + 1)


def test_a_head_wide_as_its_teachers_almost_goes_straight_at_any_length() -> None:
    assert is_cheaper_straight(49_152, 576, 432, positions=2**40)
