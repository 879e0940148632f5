"""How far the student's next-token distribution is from the teacher's, and the gradient: one formula a direction."""

import math
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["forward", "reverse", "skewed"]


def divergence(
    log_s: Tensor,
    log_t: Tensor,
    *,
    direction: Direction,
    skew: float,
    needs_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute a divergence of teacher and student, and its gradient to the student's logits.

    With the student's `s = softmax(z)` and the teacher's `t` over the vocabulary:

        forward  KL(t || s) = sum t (log t - log s)                       gradient  s - t
        reverse  KL(s || t) = sum s (log s - log t)                       gradient  s (log s - log t - KL)
        skewed   KL(t || m) = sum t (log t - log m), m = a t + (1 - a) s  gradient  s sum(r) - r, r = (1 - a) t s / m

    Reverse weighs what the student says, so it keeps to the teacher's modes; skewed stays finite and its gradient small
    where the student has no mass (Ko et al. 2024, DistiLLM). At `a = 0` skewed is forward.

    Args:
        log_s: `[positions, vocabulary]` log-probabilities of the student.
        log_t: The same of the teacher; overwritten, by the gradient if one is formed.
        direction: Which formula.
        skew: `a`, the teacher's share of the mixture.
        needs_grad: Whether to form the gradient.

    Returns:
        `[positions]` nats, and `[positions, vocabulary]` gradient or None; in the dtype of the inputs.
    """
    if direction == "reverse":
        s, ratio = log_s.exp(), torch.sub(log_s, log_t, out=log_t)
        value = (s * ratio).sum(-1)
        return value, ratio.sub_(value[:, None]).mul_(s) if needs_grad else None
    if direction == "forward":
        t = log_t.exp()
        value = log_t.sub_(log_s).mul_(t).sum(-1)
        return value, torch.exp(log_s, out=log_t).sub_(t) if needs_grad else None
    log_own = log_s + math.log1p(-skew)
    log_m = log_own if skew == 0 else torch.logaddexp(log_t + math.log(skew), log_own)
    value = (log_t.exp() * (log_t - log_m)).sum(-1)
    if not needs_grad:
        return value, None
    share = (log_t + log_own - log_m).exp()
    return value, torch.exp(log_s, out=log_t).mul_(share.sum(-1, keepdim=True)).sub_(share)
