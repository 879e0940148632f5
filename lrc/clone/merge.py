"""Merge: a student tensor from a teacher tensor and its projection; lift and project for activations.

This is the one place where a projection meets a weight. Training evaluates it inside each layer, export once a tensor.
"""

import torch
from torch import Tensor


def merge(weight: Tensor, projection: Tensor, axis: int) -> Tensor:
    """Contract a teacher tensor's hidden axis with a projection.

    A reader `[out, d_T]` with axis 1 gives `W @ P`, `[out, d_S]`; a writer `[d_T, in]` with axis 0 gives
    `P.T @ W`, `[d_S, in]`; a writer's bias `[d_T]` with axis 0 gives `P.T @ b`. Other ranks follow the same rule.

    Args:
        weight: Teacher tensor whose size along `axis` is `d_T`.
        projection: `[d_T, d_S]`.
        axis: The hidden axis of `weight`.

    Returns:
        A tensor like `weight` with `d_S` along `axis`, in the dtype of the inputs; not always contiguous.
    """
    contracted: Tensor = torch.tensordot(weight, projection, dims=([axis], [0]))
    return contracted.movedim(-1, axis)


def projection_gradient(weight: Tensor, gradient: Tensor, axis: int) -> Tensor:
    """Pull a merged tensor's gradient back to the projection: of a reader `W.T @ G`, of a writer `W @ G.T`.

    Args:
        weight: Teacher tensor whose size along `axis` is `d_T`.
        gradient: Of `merge(weight, projection, axis)`, with `d_S` along `axis`.
        axis: The hidden axis of both.

    Returns:
        `[d_T, d_S]`.
    """
    others = [other for other in range(weight.dim()) if other != axis]
    pulled: Tensor = torch.tensordot(weight, gradient, dims=(others, others))
    return pulled


def lift(student: Tensor, projection: Tensor) -> Tensor:
    """Bring student activations `[..., d_S]` into the teacher's space `[..., d_T]`: `x_S @ P.T`."""
    return student @ projection.T


def project(teacher: Tensor, projection: Tensor) -> Tensor:
    """Bring teacher activations `[..., d_T]` into the student's space `[..., d_S]`: `x_T @ P`."""
    return teacher @ projection
