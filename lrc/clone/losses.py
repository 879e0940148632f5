"""The clone loss's unit: the error of one student activation against the teacher's, summed over valid positions.

Sums, not means: a step's means are formed once from the counts of all its micro-batches and ranks, so that splitting
a batch changes nothing.
"""

from typing import Any, Literal

import torch
from torch import Tensor

SMALLEST_MEAN_SQUARE = 1e-6


def clone_error(student: Tensor, teacher: Tensor, valid: Tensor, kind: Literal["relative", "raw"]) -> Tensor:
    """Sum over valid positions the error of `student` against `teacher`.

    With e = mean over features of (student - teacher)^2, `raw` (published) sums e; `relative` sums
    e / (mean over features of teacher^2), so that a position or layer with huge activations weighs as much as any.
    Their difference, in the student's dtype, is all that is kept for the backward pass (and a projected teacher).

    Args:
        student: `[batch, seq, features]`.
        teacher: `[batch, seq, features]`; a projected one carries its projection's gradient.
        valid: `[batch, seq]` bool or 0/1, positions that count.
        kind: `relative` or `raw`.

    Returns:
        Scalar, float32 (float64 for float64 inputs).
    """
    result: Tensor = _CloneError.apply(student, teacher, valid, kind == "relative")  # type: ignore[no-untyped-call]
    return result


class _CloneError(torch.autograd.Function):
    """`sum_n w_n |s_n - t_n|^2 / d` with `w_n` the position's weight, 1 or one over the teacher's mean square."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, valid: Tensor, is_relative: bool) -> Tensor:
        exact = torch.float64 if student.dtype == torch.float64 else torch.float32
        target, difference = teacher.to(exact), student.to(exact)
        weight = valid.to(exact)
        scale = None
        if is_relative:
            scale = _mean_square(target).clamp_min(SMALLEST_MEAN_SQUARE)
            weight = weight / scale
        # in the copy's own memory, where there is a copy: what is formed anew has to be brought from memory anew
        difference = difference - target if difference is student else difference.sub_(target)
        error = _mean_square(difference)
        wants_teacher = ctx.needs_input_grad[1]
        ctx.save_for_backward(
            difference.to(student.dtype),
            weight,
            teacher if wants_teacher and is_relative else None,
            error / scale if wants_teacher and scale is not None else None,
            None if scale is None else scale > SMALLEST_MEAN_SQUARE,
        )
        return (error * weight).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        difference, weight, teacher, relative, moves = ctx.saved_tensors
        factor = (2 / difference.shape[-1] * grads[0] * weight)[..., None].to(difference.dtype)
        to_student = difference * factor
        to_teacher = None
        if ctx.needs_input_grad[1]:
            to_teacher = -to_student
            if teacher is not None:  # its mean square divides, unless it is too small to
                to_teacher = to_teacher - teacher * (factor[..., 0] * relative * moves)[..., None]
            to_teacher = to_teacher.to(difference.dtype)
        return to_student if ctx.needs_input_grad[0] else None, to_teacher, None, None


def _mean_square(values: Tensor) -> Tensor:
    """Mean over the last axis of the squares, in one pass."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return norm.square() / values.shape[-1]
