"""LM and KL losses straight from hidden states, reduced in float32, a chunk of positions at a time.

A `[tokens, vocabulary]` tensor never exists: each chunk's logits are formed for both models, reduced to the two
losses, turned into the gradient, and dropped. The gradient is formed in the forward pass, so backward only scales it.
What lies between the products goes through a chunk in blocks of rows, so that on a CPU they stay in a core's cache.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrc.clone.divergence import Direction, divergence
from lrc.clone.products import add_product, exact_product, exact_products, stays_in_cache

IGNORED_LABEL = -100
CHUNK_BYTES = 96 * 2**20
"""Float32 logits of one model that are formed at a time: 512 positions of 49,152 words."""
CHUNK_POSITIONS = 256
"""Fewest positions of a chunk whatever the vocabulary: products of fewer rows read a head faster than they use it."""
BLOCK_BYTES = 2**19
"""Logits of one model that a core takes at a time; some three blocks of that size are in use at once."""


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
        chunk: Positions a chunk; None: as `chunk_positions` says.

    Returns:
        `lm * LM_sum + kl * KL_sum`, a scalar with gradient to `student` and to `student_head` or `projection`; then LM
        and KL of each position, `[positions]`, without gradient and 0 where the label is -100. All in float32 (float64
        for float64 inputs).
    """
    if chunk is None:
        chunk = chunk_positions(student_head.shape[0], positions=student.shape[0])
    result: tuple[Tensor, Tensor, Tensor] = _HeadLosses.apply(  # type: ignore[no-untyped-call]  # torch's own
        student, student_head, projection, teacher, teacher_head, labels, weights, chunk, torch.is_grad_enabled()
    )
    return result


def chunk_positions(vocabulary: int, *, positions: int) -> int:
    """Return how many positions' logits are formed at a time: 96 MiB in float32, or 256 positions if that is more.

    Chunks of one batch are alike, since each reads the whole heads, the last one too.
    """
    most = max(1, CHUNK_POSITIONS, CHUNK_BYTES // (4 * vocabulary))
    return -(-positions // max(1, -(-positions // most))) or 1


def head_gradient_flops(vocabulary: int, d_teacher: int, d_student: int, *, positions: int) -> tuple[float, float]:
    """Count the FLOPs from the gradient `G` of logits to those of states `X` and projection `P`, on two ways.

    Through the merge `W P`: `G (W P)` and `G.T X`, `4 V d_S` a position, and once `W.T (G.T X)`, `2 V d_T d_S`.
    Straight: `Y = G W`, `Y P` and `Y.T X`, `2 V d_T + 4 d_T d_S` a position, and no gradient of the head's size.

    Args:
        vocabulary: `V`.
        d_teacher: `d_T`.
        d_student: `d_S`.
        positions: Those that share one merge: of a rank's micro-batch, or of all its micro-batches of a step.

    Returns:
        Through the merge, straight.
    """
    through = 4.0 * positions * vocabulary * d_student + 2.0 * vocabulary * d_teacher * d_student
    return through, 2.0 * positions * d_teacher * (vocabulary + 2 * d_student)


def is_cheaper_straight(vocabulary: int, d_teacher: int, d_student: int, *, positions: int) -> bool:
    """Whether the head's gradient takes fewer FLOPs straight than through the merge; see `head_gradient_flops`."""
    through, straight = head_gradient_flops(vocabulary, d_teacher, d_student, positions=positions)
    return straight < through


def rounds_logits(states: Tensor) -> bool:
    """Whether a step's logits are rounded to bfloat16, as stock models' are, before they are reduced in float32.

    They are where the product with a float32 result runs at half the speed: on a CPU. Measures, which need no gradient,
    are never rounded.

    Args:
        states: The student's hidden states.
    """
    return states.dtype == torch.bfloat16 and stays_in_cache(states)


def float32_logits(states: Tensor, head: Tensor) -> Tensor:
    """Return `states @ head.T` in float32, `[positions, vocabulary]`."""
    return exact_product(states, head, out=head.new_empty(len(states), len(head), dtype=torch.float32))


def softcapped(logits: Tensor, softcap: float | None, *, out: Tensor | None = None) -> Tensor:
    """Return `softcap * tanh(logits / softcap)`, in the memory of `out` if it is given, or the logits unchanged."""
    if softcap is None:
        return logits
    return torch.mul(torch.tanh(torch.div(logits, softcap, out=out), out=out), softcap, out=out)


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
        is_step: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.float64 if student.dtype == torch.float64 else torch.float32
        # gradients meet their products in bfloat16, if the models compute in it: the fast units would round them anyway
        rounded = torch.bfloat16 if student.dtype == torch.bfloat16 else exact
        needs_hidden = is_step and ctx.needs_input_grad[0]  # which doesn't know of `no_grad`
        needs_trained = is_step and ctx.needs_input_grad[1 if projection is None else 2]
        needs_grad = needs_hidden or needs_trained
        kept = rounded if needs_grad and rounds_logits(student) else exact
        size = min(chunk, student.shape[0])
        ours = _Products(student, student_head, size, kept)
        theirs = None if teacher is None else _Products(teacher, teacher_head, size, kept)
        lm = torch.zeros(student.shape[0], dtype=exact, device=student.device)
        kl = torch.zeros_like(lm)
        trained = student_head if projection is None else projection
        grad_hidden = torch.empty(student.shape, dtype=rounded, device=student.device) if needs_hidden else None
        grad_trained = torch.zeros(trained.shape, dtype=exact, device=student.device) if needs_trained else None
        reader = None if projection is None else teacher_head.to(rounded)
        inner = (student_head if projection is None else projection).to(rounded)
        grads = (
            student.new_empty(size, student_head.shape[0], dtype=rounded) if needs_grad and kept != rounded else None
        )
        for start in range(0, student.shape[0], chunk):
            rows = slice(start, start + chunk)
            lm[rows], kl[rows], grad = _chunk_losses(
                ours.of(rows),
                None if theirs is None else theirs.of(rows),
                labels[rows],
                weights,
                needs_grad=needs_grad,
                space=grads,
            )
            if grad is not None and reader is not None:
                grad = grad @ reader  # [chunk, d_T]
            if grad is not None and grad_hidden is not None:
                torch.mm(grad, inner, out=grad_hidden[rows])
            if grad is not None and grad_trained is not None:
                _add_gradient(grad_trained, grad, student[rows], is_straight=projection is not None)
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
        return grad_hidden, *of_heads, *[None] * 6


def _add_gradient(total: Tensor, grad: Tensor, states: Tensor, *, is_straight: bool) -> None:
    """Add a chunk's `grad.T @ states`; to a head's gradient, `[vocabulary, d_S]`, in the factors' own dtype."""
    if is_straight:
        with exact_products(states.dtype):
            total.addmm_(grad.to(total.dtype).T, states.to(total.dtype))
    else:
        add_product(total, grad, states.to(grad.dtype))


class _Products:
    """Products of one model's hidden states and head, chunk after chunk in the same memory."""

    def __init__(self, hidden: Tensor, head: Tensor, size: int, dtype: torch.dtype) -> None:
        self.hidden = hidden
        self.head = head
        self.space = head.new_empty(size, head.shape[0], dtype=dtype)

    def of(self, rows: slice) -> Tensor:
        """Return a chunk's, `[chunk, vocabulary]`, in place of the last one's."""
        hidden = self.hidden[rows]
        return exact_product(hidden, self.head, out=self.space[: len(hidden)])


def _chunk_losses(
    products: Tensor,
    teacher_products: Tensor | None,
    labels: Tensor,
    weights: HeadWeights,
    *,
    needs_grad: bool,
    space: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Reduce one chunk's products of hidden states and heads; both may be overwritten.

    Args:
        products: `[chunk, vocabulary]`, in float32 or rounded to bfloat16.
        teacher_products: As `products`.
        labels: `[chunk]`.
        weights: Of the losses.
        needs_grad: Form the gradient too.
        space: Where it is rounded to, `[at least chunk, vocabulary]`; None: in the products' dtype and memory.

    Returns:
        LM and KL, `[chunk]`, in float32, and the objective's gradient with respect to `products`.
    """
    valid = labels != IGNORED_LABEL
    targets = labels.where(valid, 0)[:, None]
    exact = torch.promote_types(products.dtype, torch.float32)
    mask = valid.to(exact)
    lm, kl = torch.zeros_like(mask), torch.zeros_like(mask)
    grads = (products if teacher_products is None else teacher_products) if space is None else space[: len(products)]
    factor = (weights.lm if weights.lm or teacher_products is None else weights.kl / weights.temperature) * mask
    size = _block_rows(products, exact)
    for start in range(0, len(products), size):
        rows = slice(start, start + size)
        mine = products[rows].to(exact)
        theirs = None if teacher_products is None else teacher_products[rows].to(exact)
        lm[rows], kl[rows], grad = _block_losses(mine, theirs, targets[rows], weights, needs_grad=needs_grad)
        if grad is not None:
            torch.mul(grad, factor[rows, None], out=grads[rows])
    return lm * mask, kl * mask, grads if needs_grad else None


def _block_rows(products: Tensor, exact: torch.dtype) -> int:
    """Return how many rows of a chunk are reduced at a time: what fits the cores' caches, all of them on a GPU."""
    if not stays_in_cache(products):
        return len(products)
    return torch.get_num_threads() * max(1, BLOCK_BYTES // (exact.itemsize * products.shape[1]))


def _block_losses(
    products: Tensor, teacher_products: Tensor | None, targets: Tensor, weights: HeadWeights, *, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Reduce rows of products; both may be overwritten.

    Returns:
        LM and KL, `[rows]`, and the gradient of LM + `kl / (lm temperature)` KL, or of KL alone at logits divided by
        the temperature where LM weighs nothing: on a CPU in the memory of the teacher's products, or without a teacher
        of the student's.
    """
    temperature, softcap = weights.temperature, weights.softcap
    logits = softcapped(products, softcap, out=products)
    slope = 1 - (logits / softcap).square() if softcap is not None and needs_grad else None
    # at another temperature the logits are needed twice
    is_last_use = temperature == 1 or teacher_products is None
    log_p = _log_softmax(logits) if is_last_use else torch.log_softmax(logits, -1)
    lm = -log_p.gather(-1, targets)[:, 0]
    kl, grad = torch.zeros_like(lm), None
    if teacher_products is not None:
        teacher_logits = softcapped(teacher_products, softcap, out=teacher_products)
        kl, grad = divergence(
            log_p if temperature == 1 else _log_softmax(logits.div_(temperature)),
            _log_softmax(teacher_logits if temperature == 1 else teacher_logits.div_(temperature)),
            direction=weights.direction,
            skew=weights.skew,
            needs_grad=needs_grad,
        )
    if needs_grad and (weights.lm or grad is None):
        of_lm = log_p.exp_().scatter_add_(-1, targets, log_p.new_full(targets.shape, -1.0))  # p - target
        ratio = weights.kl / (weights.lm * temperature) if grad is not None else 0.0
        grad = of_lm if grad is None else torch.add(of_lm, grad, alpha=ratio, out=grad)
    if grad is not None and slope is not None:
        grad.mul_(slope)
    return lm, kl, grad


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log softmax over the last dimension, on a CPU in the logits' own memory."""
    return torch.log_softmax(logits, -1, out=logits if stays_in_cache(logits) else None)
