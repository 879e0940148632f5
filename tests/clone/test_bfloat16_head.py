"""The head in bfloat16: what is rounded, what is not, and what is never held."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrc.clone import head, products
from lrc.clone.head import HeadWeights, head_losses
from tests.clone.head_inputs import D_STUDENT, D_TEACHER, VOCABULARY, Inputs, each_softcap, make_inputs, plain_losses


def in_float64(inputs: Inputs) -> Inputs:
    """The same values, with gradients of their own."""
    names = ("student", "teacher", "student_head", "teacher_head")
    exact = replace(inputs, **{name: getattr(inputs, name).detach().double() for name in names})
    exact.student.requires_grad_()
    exact.student_head.requires_grad_()
    return exact


def of_rounded_logits(inputs: Inputs) -> Inputs:
    """States and heads whose products are the logits rounded to bfloat16: the logits themselves and the unit matrix."""
    exact = in_float64(inputs)
    assert exact.teacher is not None
    unit = torch.eye(VOCABULARY, dtype=torch.float64)
    student = (exact.student @ exact.student_head.T).detach().bfloat16().double().requires_grad_()
    teacher = (exact.teacher @ exact.teacher_head.T).bfloat16().double()
    return replace(exact, student=student, teacher=teacher, student_head=unit, teacher_head=unit)


def test_16_bit_inputs_are_reduced_in_float32_also_at_a_high_temperature() -> None:
    weights = HeadWeights(lm=0.0, kl=40.0**2, temperature=40.0)
    inputs = make_inputs(dtype=torch.bfloat16)
    exact = in_float64(inputs)
    total, expected = inputs.losses(weights, 3)[0], plain_losses(exact, weights)[0]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=1e-3, atol=0)
    for found, wanted in zip(inputs.gradients(total), exact.gradients(expected), strict=True):
        assert found.dtype == torch.bfloat16
        assert F.cosine_similarity(found.double().flatten(), wanted.flatten(), dim=0) > 0.9999


WEIGHTS = HeadWeights(lm=0.7, kl=1.3, temperature=2.0)


@each_softcap
def test_a_step_reduces_logits_rounded_to_bfloat16_in_float32(softcap: float | None) -> None:
    inputs, weights = make_inputs(dtype=torch.bfloat16), replace(WEIGHTS, softcap=softcap)
    for found, wanted in zip(inputs.losses(weights, 3), plain_losses(of_rounded_logits(inputs), weights), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.detach().double(), wanted.detach(), rtol=1e-6, atol=1e-6)


@each_softcap
def test_the_gradient_of_a_step_is_that_of_rounded_logits(softcap: float | None) -> None:
    inputs, weights = make_inputs(dtype=torch.bfloat16), replace(WEIGHTS, softcap=softcap)
    rounded = of_rounded_logits(inputs)
    (of_logits,) = torch.autograd.grad(plain_losses(rounded, weights)[0], [rounded.student])
    exact = in_float64(inputs)
    wanted = of_logits @ exact.student_head.detach(), of_logits.T @ exact.student.detach()
    found = torch.autograd.grad(inputs.losses(weights, 3)[0], [inputs.student, inputs.student_head])
    for ours, plain in zip(found, wanted, strict=True):
        bound = 2.0**-7 * float(plain.abs().max())  # the gradient of logits, a product, a sum over chunks: each rounded
        torch.testing.assert_close(ours.double(), plain, rtol=0, atol=bound)


@each_softcap
def test_a_measure_rounds_no_logits(softcap: float | None) -> None:
    inputs, weights = make_inputs(dtype=torch.bfloat16), replace(WEIGHTS, softcap=softcap)
    with torch.no_grad():
        found = inputs.losses(weights, 3)
        wanted = plain_losses(in_float64(inputs), weights)
        rounded = plain_losses(of_rounded_logits(inputs), weights)
    for ours, plain, lossy in zip(found, wanted, rounded, strict=True):
        torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=1e-6)
        assert float((lossy - plain).abs().max()) > 1e-4


def test_where_a_float32_result_costs_no_more_a_step_rounds_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "stays_in_cache", lambda tensor: False)
    inputs = make_inputs(dtype=torch.bfloat16)
    for found, wanted in zip(inputs.losses(WEIGHTS, 3), plain_losses(in_float64(inputs), WEIGHTS), strict=True):
        torch.testing.assert_close(found.detach().double(), wanted.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("trains", [True, False], ids=["step", "measure"])
def test_the_head_is_never_held_in_float32(monkeypatch: pytest.MonkeyPatch, trains: bool) -> None:
    numels: set[int] = set()

    class Float32(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float32 and not result._is_view():
                numels.add(result.numel())
            return result

    monkeypatch.setattr(products, "TILE_BYTES", 4 * D_TEACHER)  # one word
    inputs = make_inputs(dtype=torch.bfloat16)
    projection = torch.randn(D_TEACHER, D_STUDENT, requires_grad=True)
    with Float32(), torch.set_grad_enabled(trains):  # type: ignore[no-untyped-call]  # the base class in torch has no annotations
        total, *_ = head_losses(
            inputs.student,
            inputs.teacher,
            inputs.student_head.detach(),
            inputs.teacher_head,
            inputs.labels,
            weights=HeadWeights(lm=0.0, kl=1.0),
            projection=projection,
            chunk=2,
        )
        if trains:
            total.backward()
    assert max(numels - {D_TEACHER * D_STUDENT}) <= 2 * VOCABULARY < D_TEACHER * VOCABULARY
