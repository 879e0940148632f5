"""The clone loss's unit: the error of one student activation against the teacher's, summed over valid positions.

Sums, not means: a step's means are formed once from the counts of all its micro-batches and ranks, so that splitting
a batch changes nothing.
"""

from typing import Literal

from torch import Tensor

SMALLEST_MEAN_SQUARE = 1e-6


def clone_error(student: Tensor, teacher: Tensor, valid: Tensor, kind: Literal["relative", "raw"]) -> Tensor:
    """Sum over valid positions the error of `student` against `teacher`.

    With e = mean over features of (student - teacher)^2, `raw` (published) sums e; `relative` sums
    e / (mean over features of teacher^2), so that a position or layer with huge activations weighs as much as any.

    Args:
        student: `[batch, seq, features]`.
        teacher: `[batch, seq, features]`; a projected one carries its projection's gradient.
        valid: `[batch, seq]` bool or 0/1, positions that count.
        kind: `relative` or `raw`.

    Returns:
        Scalar, float32 (float64 for float64 inputs).
    """
    accumulate = student.double if student.dtype.itemsize == 8 else student.float
    student, teacher = accumulate(), teacher.to(accumulate().dtype)
    error = (student - teacher).square().mean(-1)
    if kind == "relative":
        error = error / teacher.square().mean(-1).clamp_min(SMALLEST_MEAN_SQUARE)
    return (error * valid).sum()
