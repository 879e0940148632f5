"""The clone error: hand-computed values, gradients by finite difference, padding, the all-masked batch."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from lrc.clone.losses import SMALLEST_MEAN_SQUARE, clone_error
from lrc.clone.merge import project

Kind = Literal["relative", "raw"]
each_kind = pytest.mark.parametrize("kind", ["relative", "raw"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# position 1: differences 1, -2 -> mean square 2.5; teacher 1, 3 -> mean square 5
# position 2: differences 0, 4 -> 8; teacher 2, 0 -> 2
# position 3: differences 3, 3 -> 9; teacher -1, 1 -> 1
STUDENT = torch.tensor([[[2.0, 1.0], [2.0, 4.0], [2.0, 4.0]]], dtype=torch.float64)
TEACHER = torch.tensor([[[1.0, 3.0], [2.0, 0.0], [-1.0, 1.0]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "valid", "expected"),
    [
        ("raw", [[True, True, True]], 2.5 + 8 + 9),
        ("raw", [[True, False, True]], 2.5 + 9),
        ("relative", [[True, True, True]], 2.5 / 5 + 8 / 2 + 9 / 1),
        ("relative", [[False, True, False]], 8 / 2),
    ],
)
def test_the_value_is_the_one_worked_out_by_hand(kind: Kind, valid: list[list[bool]], expected: float) -> None:
    value = clone_error(STUDENT, TEACHER, torch.tensor(valid), kind)
    assert value.shape == ()
    assert float(value) == pytest.approx(expected, rel=1e-14)


def test_a_silent_teacher_is_divided_by_the_smallest_mean_square() -> None:
    student = torch.full((1, 1, 2), 1e-3, dtype=torch.float64)
    error = clone_error(student, torch.zeros_like(student), torch.ones(1, 1), "relative")
    assert float(error) == pytest.approx(1e-6 / SMALLEST_MEAN_SQUARE)


@each_kind
def test_a_0_1_mask_counts_as_a_boolean_one(kind: Kind) -> None:
    valid = torch.tensor([[True, False, True]])
    assert clone_error(STUDENT, TEACHER, valid, kind) == clone_error(STUDENT, TEACHER, valid.long(), kind)


@each_kind
def test_gradients_agree_with_finite_differences(kind: Kind) -> None:
    student, teacher = random(2, 3, 4).requires_grad_(), random(2, 3, 4, seed=1).requires_grad_()
    valid = torch.tensor([[True, True, False], [False, True, True]])
    assert torch.autograd.gradcheck(lambda s, t: clone_error(s, t, valid, kind), (student, teacher))


@each_kind
def test_the_projection_of_a_teacher_gets_its_gradient(kind: Kind) -> None:
    student, teacher, valid = random(2, 3, 4), random(2, 3, 6, seed=1), torch.ones(2, 3, dtype=torch.bool)
    projection = random(6, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: clone_error(student, project(teacher, p), valid, kind), (projection,))


@each_kind
def test_appended_padding_changes_neither_value_nor_gradient(kind: Kind) -> None:
    student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    short = student.clone().requires_grad_()
    expected = clone_error(short, teacher, valid, kind)
    expected.backward()
    long = torch.cat([student, 1e3 * random(2, 5, 4, seed=2)], 1).requires_grad_()
    value = clone_error(
        long,
        torch.cat([teacher, 1e3 * random(2, 5, 4, seed=3)], 1),
        torch.cat([valid, torch.zeros(2, 5, dtype=torch.bool)], 1),
        kind,
    )
    value.backward()
    assert short.grad is not None
    assert long.grad is not None
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(long.grad[:, :3], short.grad, rtol=1e-14, atol=0)
    assert not long.grad[:, 3:].any()


@each_kind
def test_splitting_a_batch_splits_the_sum(kind: Kind) -> None:
    student, teacher = random(4, 3, 4), random(4, 3, 4, seed=1)
    valid = random(4, 3, seed=2) > 0
    parts = [
        clone_error(student[rows], teacher[rows], valid[rows], kind) for rows in (slice(0, 1), slice(1, 2), slice(2, 4))
    ]
    torch.testing.assert_close(clone_error(student, teacher, valid, kind), torch.stack(parts).sum(), rtol=1e-14, atol=0)


@each_kind
def test_an_all_masked_batch_gives_exactly_zero_value_and_gradients(kind: Kind) -> None:
    student, teacher = random(2, 3, 4).requires_grad_(), random(2, 3, 4, seed=1).requires_grad_()
    value = clone_error(student, teacher, torch.zeros(2, 3, dtype=torch.bool), kind)
    value.backward()
    assert value.item() == 0
    for tensor in (student, teacher):
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@each_kind
def test_a_student_that_equals_the_teacher_has_no_error(kind: Kind) -> None:
    assert clone_error(TEACHER, TEACHER.clone(), torch.ones(1, 3), kind).item() == 0


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_activations_are_reduced_in_float32(kind: Kind, dtype: torch.dtype) -> None:
    student, teacher, valid = random(2, 50, 64).to(dtype), random(2, 50, 64, seed=1).to(dtype), torch.ones(2, 50)
    value = clone_error(student, teacher, valid, kind)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value.double(), clone_error(student.double(), teacher.double(), valid, kind), rtol=1e-5, atol=0
    )


@each_kind
def test_float64_stays_float64(kind: Kind) -> None:
    assert clone_error(STUDENT, TEACHER, torch.ones(1, 3), kind).dtype == torch.float64
