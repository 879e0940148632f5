"""LM and KL losses straight from hidden states, in float32, a chunk of positions at a time.

A `[tokens, vocabulary]` tensor never exists: each chunk's logits are formed for both models, reduced to the two
losses, turned into the gradient, and dropped. The gradient is formed in the forward pass, so backward only scales it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrc.clone.divergence import Direction, divergence
from lrc.clone.products import exact_products

IGNORED_LABEL = -100
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """What the two heads' losses are worth in the objective, and how logits are made.

    The objective's head part is `lm * LM_sum + kl * KL_sum`, sums over labelled positions in nats.
    """

    lm: float
    kl: float
    temperature: float = 1.0
    direction: Direction = "forward"
    """Of the KL (`lrc/clone/divergence.py`)."""
    skew: float = 0.1
    """Share of the teacher in the mixture that `skewed` compares with."""
    softcap: float | None = None
    """Logits are `softcap * tanh(x / softcap)` (Gemma); None: plain."""


def head_losses(
    student: Tensor,
    teacher: Tensor | None,
    student_head: Tensor,
    teacher_head: Tensor,
    labels: Tensor,
    *,
    weights: HeadWeights,
    projection: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the head's part of the objective and its two losses.

    LM is the student's cross entropy; KL is that of softmax(logits / T) over the vocabulary, KL(teacher || student)
    unless `weights.direction` says otherwise, not multiplied by `T^2`. Positions with label -100 count nowhere.

    Args:
        student: `[positions, d_S]` hidden states after the student's last norm.
        teacher: `[positions, d_T]`, no gradient; None where no teacher has run: KL is 0.
        student_head: `[vocabulary, d_S]` merged head.
        teacher_head: `[vocabulary, d_T]`, no gradient.
        labels: `[positions]` next token of each position, or -100.
        weights: Weights, temperature, soft-cap.
        projection: `[d_T, d_S]` where `student_head` is `teacher_head @ projection`: the gradient goes straight to it.
        chunk: Positions a chunk; None takes about 64 MiB of logits.

    Returns:
        `lm * LM_sum + kl * KL_sum`, a scalar with gradient to `student` and to `student_head` or `projection`; then LM
        and KL of each position, `[positions]`, without gradient and 0 where the label is -100. All in float32 (float64
        for float64 inputs).
    """
    if chunk is None:
        chunk = max(1, CHUNK_BYTES // (4 * student_head.shape[0]))
    result: tuple[Tensor, Tensor, Tensor] = _HeadLosses.apply(  # type: ignore[no-untyped-call]  # torch's own
        student, student_head, projection, teacher, teacher_head, labels, weights, chunk
    )
    return result


def is_cheaper_straight(vocabulary: int, d_teacher: int, d_student: int, *, positions: int) -> bool:
    """Whether the head's gradient reaches its projection `P` with fewer FLOPs straight than through the merge `W P`.

    Through it: `G (W P)` and `G.T X`, `4 V d_S` a position, and once a step `W.T (G.T X)`, `2 V d_T d_S`. Straight:
    `Y = G W`, `Y P` and `Y.T X`, `2 V d_T + 4 d_T d_S` a position, and no gradient of the size of the head.

    Args:
        vocabulary: `V`.
        d_teacher: `d_T`.
        d_student: `d_S`.
        positions: Of the whole step, all of whose micro-batches share one merge.
    """
    through = 4 * positions * vocabulary * d_student + 2 * vocabulary * d_teacher * d_student
    return 2 * positions * d_teacher * (vocabulary + 2 * d_student) < through


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return `softcap * tanh(logits / softcap)`, or the logits unchanged."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        student_head: Tensor,
        projection: Tensor | None,
        teacher: Tensor | None,
        teacher_head: Tensor,
        labels: Tensor,
        weights: HeadWeights,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.float64 if student.dtype == torch.float64 else torch.float32
        head_s = student_head.to(exact)
        head_t = None if teacher is None and projection is None else teacher_head.to(exact)
        lm = torch.zeros(student.shape[0], dtype=exact, device=student.device)
        kl = torch.zeros_like(lm)
        trained = student_head if projection is None else projection
        needs_hidden, needs_trained = ctx.needs_input_grad[0], ctx.needs_input_grad[1 if projection is None else 2]
        grad_hidden = torch.empty(student.shape, dtype=exact, device=student.device) if needs_hidden else None
        grad_trained = torch.zeros(trained.shape, dtype=exact, device=student.device) if needs_trained else None
        inner = head_s if projection is None else projection.to(exact)
        space = _Space(min(chunk, student.shape[0]), head_s)
        for start in range(0, student.shape[0], chunk):
            rows = slice(start, start + chunk)
            hidden = student[rows].to(exact)
            with exact_products(student.dtype):
                logits = softcapped(torch.mm(hidden, head_s.T, out=space.take(0, len(hidden))), weights.softcap)
                teacher_logits = None
                if teacher is not None and head_t is not None:
                    states = teacher[rows].to(exact)
                    product = torch.mm(states, head_t.T, out=space.take(1, len(hidden)))
                    teacher_logits = softcapped(product, weights.softcap)
            slope = None
            if weights.softcap is not None and (needs_hidden or needs_trained):
                slope = 1 - (logits / weights.softcap).square()
            lm[rows], kl[rows], grad, scale = _chunk_losses(
                logits, teacher_logits, labels[rows], weights, space, needs_grad=needs_hidden or needs_trained
            )
            if grad is not None and slope is not None:
                grad *= slope
            with exact_products(student.dtype):
                if grad is not None and projection is not None:
                    grad = grad @ head_t  # [chunk, d_T]
                if grad is not None and grad_hidden is not None:
                    torch.mm(grad, inner, out=grad_hidden[rows]).mul_(scale)
                if grad is not None and grad_trained is not None:
                    grad_trained.addmm_(grad.T, hidden * scale)
        ctx.is_straight = projection is not None
        ctx.save_for_backward(
            None if grad_hidden is None else grad_hidden.to(student.dtype),
            None if grad_trained is None else grad_trained.to(trained.dtype),
        )
        ctx.mark_non_differentiable(lm, kl)
        return weights.lm * lm.sum() + weights.kl * kl.sum(), lm, kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_trained = (None if grad is None else grad * grads[0] for grad in ctx.saved_tensors)
        of_heads = (None, grad_trained) if ctx.is_straight else (grad_trained, None)
        return grad_hidden, *of_heads, *[None] * 5


class _Space:
    """Memory for a chunk's logits of both models and what is made of them, the same for every chunk."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self.shape = (rows, like.shape[0])
        self.like = like
        self.tensors: dict[int, Tensor] = {}

    def take(self, index: int, rows: int) -> Tensor:
        """Return one of the pieces, `[rows, vocabulary]`, made when it is first asked for."""
        if index not in self.tensors:
            self.tensors[index] = self.like.new_empty(self.shape)
        return self.tensors[index][:rows]


def _chunk_losses(
    logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    weights: HeadWeights,
    space: _Space,
    *,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Reduce one chunk's logits; both may be overwritten.

    Returns:
        LM and KL, `[chunk]`, and the objective's gradient with respect to `logits` as `[chunk, vocabulary]` times
        `[chunk, 1]`.
    """
    temperature = weights.temperature
    valid = labels != IGNORED_LABEL
    targets = labels.where(valid, 0)[:, None]
    mask = valid.to(logits.dtype)
    # at another temperature the logits are needed twice
    log_p = _log_softmax(logits) if temperature == 1 else torch.log_softmax(logits, -1)
    lm = -log_p.gather(-1, targets)[:, 0] * mask
    kl, grad = torch.zeros_like(lm), None
    if teacher_logits is not None:
        log_q = log_p if temperature == 1 else _log_softmax(logits.div_(temperature))
        teacher_log_q = _log_softmax(teacher_logits if temperature == 1 else teacher_logits.div_(temperature))
        kl, grad = divergence(
            log_q,
            teacher_log_q,
            direction=weights.direction,
            skew=weights.skew,
            needs_grad=needs_grad,
            work=space.take(2, len(log_q)),
        )
        kl = kl * mask
    of_kl, of_lm = (weights.kl / temperature * mask)[:, None], (weights.lm * mask)[:, None]
    if not needs_grad:
        return lm, kl, None, of_kl
    if grad is not None and not weights.lm:
        return lm, kl, grad, of_kl  # one factor a row: cheaper on what the gradient becomes than on itself
    grad = torch.zeros_like(log_p) if grad is None else grad.mul_(of_kl)
    if weights.lm:  # weight * (p - target)
        grad.addcmul_(log_p.exp_(), of_lm).scatter_add_(-1, targets, -of_lm)
    return lm, kl, grad, torch.ones_like(of_kl)


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log softmax over the last dimension, on a CPU in the logits' own memory."""
    return torch.log_softmax(logits, -1, out=logits if logits.device.type == "cpu" else None)
