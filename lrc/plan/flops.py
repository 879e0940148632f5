"""FLOPs of one micro-batch, by cause, as the pair model computes them today (docs/plan.md has the formulas).

A product of `[m, k]` and `[k, n]` is `2 m k n`; norms, activations and softmaxes are left out, as torch's counter does.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from lrc.clone.head import head_gradient_flops
from lrc.clone.sites import Stage, layer_terms
from lrc.config import Checkpointing, ObjectiveConfig, OptimizerName
from lrc.models.student import head_size
from lrc.plan.sizes import Sizes

FLASH_BACKWARD = 2.5
"""A flash kernel's backward pass forms the scores again: five products where the forward pass has two."""
NEWTON_SCHULZ = (8, 28)
"""FLOPs that Muon's polar factor takes of an `[m, n]` matrix, `m >= n`: so many `m n^2` and so many `n^3`.

Two rounds, each with two products of the large matrix (`4 m n^2`), and square ones of `2 n^3`: one for each of the five
polynomials, three more for each of the three steps that follow another within a round."""
_EXPERTS = re.compile(r"(^|\.)experts\.")


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of one micro-batch, forward and backward."""

    teacher: float
    """The teacher's layers, forward."""
    student_forward: float
    """The student's layers on merged weights."""
    student_backward: float
    """Gradients of the student's activations and merged weights."""
    merge_forward: float
    """`W @ P` for every projected tensor: whatever the batch's size, but for the embedding's rows."""
    merge_backward: float
    """Gradients of the projections through the merges; the teacher's weights need none. Without the head's where that
    goes past the merged matrix (`lrc/clone/head.py:is_cheaper_straight`)."""
    clone: float
    """Teacher activations projected (or the student's lifted) for the clone terms, and their gradient."""
    head: float
    """Both models' logits and the gradient of the student's; formed in the forward pass, so nothing is recomputed."""
    checkpointing: float
    """What activation checkpointing adds: a second forward pass of every pair layer, the teacher's included; or of its
    merges, clone terms and the student's wide products (`selective`)."""

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, entry.name) for entry in fields(self)))


def step_flops(
    sizes: Sizes,
    objective: ObjectiveConfig,
    *,
    batch: int,
    sequence: int,
    checkpointing: Checkpointing,
    merge_shared_by: int = 1,
) -> StepFlops:
    """Count the FLOPs of one micro-batch of `batch` rows of `sequence` positions.

    Args:
        sizes: Teacher and student.
        objective: Losses.
        batch: Rows.
        sequence: Positions of a row.
        checkpointing: What the backward pass computes again.
        merge_shared_by: Micro-batches that share one merge of layers and head; each gets its part of the cost.
    """
    positions = batch * sequence
    layers = range(sizes.architecture.num_layers)
    attention = sum(_attention(sizes.config, index, sequence) for index in layers) * positions
    teacher = 2 * positions * _layer_weights(sizes, of_student=False) + attention
    student_forward = 2 * positions * _layer_weights(sizes, of_student=True) + attention
    inherited = 2 * positions * _layer_weights(sizes, of_student=True, inherited_only=True)
    student_backward = 2 * (student_forward - attention) - inherited + FLASH_BACKWARD * attention
    layer_merges = 2 * sizes.d_student * sum(prod(sizes.teacher_shape(name)) for name in _in_layers(sizes))
    head_merge = 2 * sizes.d_student * prod(sizes.teacher_shape(sizes.architecture.head))
    row_merge = 2 * positions * sizes.d_teacher * sizes.d_student
    merged_positions = positions * merge_shared_by
    through, past = head_gradient_flops(sizes.vocabulary, sizes.d_teacher, sizes.d_student, positions=merged_positions)
    is_straight = past < through and not sizes.has_head_bias
    merges = (layer_merges + head_merge) / merge_shared_by + row_merge
    recomputed_merges = layer_merges if merge_shared_by == 1 else 0
    clone_forward, clone_backward = _clone(sizes, objective, positions)
    head = floor_head_flops(sizes, positions)
    if is_straight:
        head += (past - (through - head_merge)) / merge_shared_by
    around = recomputed_merges + clone_forward
    again: dict[Checkpointing, float] = {
        "none": 0.0,
        "selective": around + 2 * positions * _layer_weights(sizes, of_student=True, wide_only=True),
        "layer": teacher + student_forward + around,
    }
    return StepFlops(
        teacher=teacher,
        student_forward=student_forward,
        student_backward=student_backward,
        merge_forward=merges,
        merge_backward=merges - (head_merge / merge_shared_by if is_straight else 0),
        clone=clone_forward + clone_backward,
        head=head,
        checkpointing=again[checkpointing],
    )


def optimizer_flops(sizes: Sizes, optimizer: OptimizerName) -> float:
    """Count the FLOPs of one optimiser step, of all devices together; AdamW has no products."""
    if optimizer != "muon":
        return 0.0
    tall, square = NEWTON_SCHULZ
    sides = (sorted(shape, reverse=True) for shape in sizes.trained_shapes.values() if len(shape) == 2)
    return float(sum(tall * m * n**2 + square * n**3 for m, n in sides))


def floor_head_flops(sizes: Sizes, positions: int) -> float:
    """FLOPs of both heads' logits and of the gradients of the student's states and head: what no method avoids."""
    return 2.0 * positions * sizes.vocabulary * (sizes.d_teacher + 3 * sizes.d_student)


def _in_layers(sizes: Sizes) -> Iterator[str]:
    """Go through the projected tensors of all layers."""
    for name in sizes.architecture.projected:
        if name.startswith(f"{sizes.architecture.layers}."):
            yield name


def _layer_weights(sizes: Sizes, *, of_student: bool, inherited_only: bool = False, wide_only: bool = False) -> float:
    """Values of the layers' matrices that one position meets: of stacked experts, those that it is routed to.

    `wide_only`: of the student's, those whose products are wider than their input.
    """
    prefix = f"{sizes.architecture.layers}."
    total = 0.0
    for name, shape in sizes.teacher.items():
        if not name.startswith(prefix) or len(shape) < 2:
            continue
        is_projected = name in sizes.architecture.projected
        if is_projected and inherited_only:
            continue
        out, inner = sizes.student[name][-2:]
        if wide_only and out <= inner:
            continue
        met = sizes.merged_size(name) if of_student and is_projected else prod(shape)
        total += met * _share_met(sizes.config, name, shape)
    return total


def _share_met(config: Any, name: str, shape: tuple[int, ...]) -> float:
    if not _EXPERTS.search(name):
        return 1.0
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k", None) or 1
    experts = shape[0] if len(shape) > 2 else getattr(config, "num_experts", None) or config.num_local_experts
    return float(chosen / experts)


def _attention(config: Any, layer: int, sequence: int) -> float:
    """FLOPs of a layer's scores and of their product with the values, a position: the whole square, mask or not."""
    heads = getattr(config, "num_attention_heads", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if isinstance(kinds, list | tuple) else "full_attention"
    if not heads or not ("attention" in kind or kind == "hybrid") or kind.startswith("linear"):
        return 0.0
    size = head_size(config) or 0
    scores = getattr(config, "qk_head_dim", None) or size
    values = getattr(config, "v_head_dim", None) or size
    return float(2 * sequence * heads * (scores + values))


def _clone(sizes: Sizes, objective: ObjectiveConfig, positions: int) -> tuple[float, float]:
    """Products of the clone terms, forward and backward."""
    square = 2.0 * positions * sizes.d_teacher * sizes.d_student
    forward = backward = 0.0
    left_out = set(objective.without)
    for index, stages in enumerate(sizes.architecture.stages):
        for term, (site, stage) in layer_terms(stages, sizes.variant).items():
            if term in left_out or "all" in left_out:
                continue
            if site in stage.readers:
                if sizes.variant.shares_input(stage.kind):
                    forward, backward = forward + square, backward + 2 * square
            elif stage.kind == "attn" and objective.attention_output_space == "teacher":
                writer = 2.0 * positions * _writer_size(sizes, index, site, stage)
                forward, backward = forward + writer, backward + writer
            else:
                forward, backward = forward + square, backward + square
    return forward, backward


def _writer_size(sizes: Sizes, layer: int, site: str, stage: Stage) -> int:
    name = sizes.layer(layer) + site
    return prod(sizes.teacher_shape(name if site in dict(stage.bare) else f"{name}.weight"))
