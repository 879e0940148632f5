"""Each direction's value is the definition's, its gradient autograd's; skewed stays finite where forward does not."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone.divergence import Direction, divergence
from lrc.clone.head import IGNORED_LABEL, HeadWeights, head_losses

DIRECTIONS: list[tuple[Direction, float]] = [
    ("forward", 0.1),
    ("reverse", 0.1),
    ("skewed", 0.1),
    ("skewed", 0.7),
    ("skewed", 0.0),
]
each_direction = pytest.mark.parametrize(("direction", "skew"), DIRECTIONS)


def logits(seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(6, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(student: Tensor, teacher: Tensor, direction: str, skew: float) -> Tensor:
    """The definition on probabilities, `[positions]`."""
    s, t = student.softmax(-1), teacher.softmax(-1)
    one, other = {"forward": (t, s), "reverse": (s, t), "skewed": (t, skew * t + (1 - skew) * s)}[direction]
    return (one * (one / other).log()).sum(-1)


def both(student: Tensor, teacher: Tensor, direction: Any, skew: float) -> tuple[Tensor, Tensor]:
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    value, grad = divergence(log_s, log_t, direction=direction, skew=skew, needs_grad=True)
    assert grad is not None
    return value, grad


@each_direction
def test_value_and_gradient_are_the_definition_s(direction: Direction, skew: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    expected = plain(student, teacher, direction, skew)
    (wanted,) = torch.autograd.grad(expected.sum(), student)
    value, grad = both(student.detach(), teacher, direction, skew)
    torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-10)
    again, nothing = divergence(
        student.detach().log_softmax(-1), teacher.log_softmax(-1), direction=direction, skew=skew, needs_grad=False
    )
    assert torch.equal(again, value)
    assert nothing is None


@each_direction
def test_equal_distributions_have_no_divergence_and_no_gradient(direction: Direction, skew: float) -> None:
    value, grad = both(logits(2), logits(2), direction, skew)
    assert float(value.abs().max()) < 1e-12
    assert float(grad.abs().max()) < 1e-12


def test_the_values_worked_out_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, math.log(3.0)]]).double(), torch.zeros(1, 2).double()  # 1/4, 3/4; 1/2, 1/2
    assert float(both(student, teacher, "forward", 0.1)[0]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert float(both(student, teacher, "reverse", 0.1)[0]) == pytest.approx(
        0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    )
    # half and half: 3/8, 5/8
    assert float(both(student, teacher, "skewed", 0.5)[0]) == pytest.approx(
        0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    )


def test_a_student_without_mass_where_the_teacher_has_it_gives_a_bounded_skewed_gradient() -> None:
    student, teacher = torch.tensor([[-200.0, 0.0]]).double(), torch.tensor([[0.0, -3.0]]).double()
    value, grad = both(student, teacher, "skewed", 0.1)
    assert float(value) <= -math.log(0.1)
    assert torch.isfinite(grad).all()
    assert float(both(student, teacher, "forward", 0.1)[0]) > 100


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("chunk", [2, None])
@each_direction
def test_the_chunked_head_has_the_direction_s_gradients(
    direction: Direction, skew: float, chunk: int | None, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = ((5, 3), (5, 4), (8, 3), (8, 4))
    student, teacher, head, theirs = (torch.randn(*size, generator=generator).double() for size in sizes)
    student.requires_grad_()
    head.requires_grad_()
    labels = torch.tensor([1, IGNORED_LABEL, 3, 0, 7])
    weights = HeadWeights(lm=0.4, kl=1.3, temperature=temperature, softcap=2.0, direction=direction, skew=skew)
    total, lm, kl = head_losses(student, teacher, head, theirs, labels, weights=weights, chunk=chunk)
    kept = labels != IGNORED_LABEL
    ours = 2 * torch.tanh(student @ head.T / 2)[kept]
    other = 2 * torch.tanh(teacher @ theirs.T / 2)[kept]
    expected = plain(ours / temperature, other / temperature, direction, skew)
    ce = torch.nn.functional.cross_entropy(ours, labels[kept], reduction="none")
    torch.testing.assert_close(kl[kept], expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(lm[kept], ce.detach(), rtol=0, atol=1e-10)
    found = torch.autograd.grad(total, (student, head))
    wanted = torch.autograd.grad(0.4 * ce.sum() + 1.3 * expected.sum(), (student, head))
    for one, another in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=1e-10)


def test_without_a_teacher_the_head_has_the_cross_entropy_alone() -> None:
    student = torch.randn(5, 3, generator=torch.Generator().manual_seed(4)).double().requires_grad_()
    head, labels = logits(5)[:, :3].requires_grad_(), torch.tensor([1, 0, IGNORED_LABEL, 3, 2])
    total, _, kl = head_losses(student, None, head, head, labels, weights=HeadWeights(lm=0.5, kl=1.0), chunk=2)
    expected = 0.5 * torch.nn.functional.cross_entropy(student @ head.T, labels, reduction="sum")
    torch.testing.assert_close(total, expected)
    assert not kl.any()
    for one, another in zip(
        torch.autograd.grad(total, (student, head)), torch.autograd.grad(expected, (student, head)), strict=True
    ):
        torch.testing.assert_close(one, another, rtol=0, atol=1e-12)
