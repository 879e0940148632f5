"""Sizes: every tensor of teacher and student with its shape, and what is trained, from the config alone.

Both models are built on the meta device, so the counts are those of the stock classes, to the last bias.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch

from lrc.clone.sites import Variant
from lrc.config import OptimizerName
from lrc.models.dense import Dense
from lrc.models.discovery import Architecture
from lrc.models.merge_plan import MergePlan, merge_plan
from lrc.models.moments import checkpoint_bytes, moment_bytes
from lrc.models.stock import stock_model
from lrc.models.student import student_config

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A teacher and a student of it, as shapes."""

    config: Any
    """The teacher's transformers config."""
    architecture: Architecture
    variant: Variant
    d_student: int
    plan: MergePlan
    teacher: Shapes
    """Parameters of the teacher by name, a tied head left out."""
    student: Shapes
    """Parameters of the exported student by name, a tied head left out."""
    dense: Dense | None = None
    """What is free, in a dense phase."""
    later: "Sizes | None" = None
    """The dense phase that the run ends with, if one does."""

    @property
    def d_teacher(self) -> int:
        """Width of the teacher's residual stream."""
        return self.architecture.hidden_size

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the head."""
        return self.teacher_shape(self.architecture.head)[0]

    @property
    def has_head_bias(self) -> bool:
        """Whether the head has a bias, which the student inherits."""
        return f"{self.architecture.head.removesuffix('weight')}bias" in self.teacher

    @cached_property
    def teacher_parameters(self) -> int:
        """Parameters of the teacher, a tied head counted once."""
        return sum(map(prod, self.teacher.values()))

    @cached_property
    def student_parameters(self) -> int:
        """Parameters of the exported student, a tied head counted once."""
        return sum(map(prod, self.student.values()))

    @cached_property
    def trained_parameters(self) -> int:
        """Parameters that training moves: projections `[d_T, d_S]`, gains `[d_S]`, free weights of a dense phase."""
        return sum(shape.numel() for shape in self.trained_shapes.values())

    @cached_property
    def trained_shapes(self) -> dict[str, torch.Size]:
        """Shapes of the trained tensors by checkpoint name."""
        shapes = {True: torch.Size([self.d_teacher, self.d_student]), False: torch.Size([self.d_student])}
        found = {name: shapes[name.startswith("projections.")] for name in self.plan.trained}
        return found | {stored: torch.Size(self.student[name]) for name, stored in self.plan.free.items()}

    @cached_property
    def correction_parameters(self) -> int:
        """Parameters of the corrections, which stay as a start made them: as many as the corrected weights have."""
        return sum(map(self.merged_size, self.plan.corrections))

    def trained_size(self, name: str) -> int:
        """Return the number of values of a trained tensor by its checkpoint name."""
        return self.trained_shapes[name].numel()

    def moment_bytes(self, optimizer: OptimizerName) -> int:
        """Return the bytes that the optimiser remembers, float32: two moments a value, of a projection one with Muon.

        Muon keeps the sizes of a projection's rows beside its momentum.
        """
        return moment_bytes(self.trained_shapes, optimizer, self._tables)

    def checkpoint_bytes(self, optimizer: OptimizerName) -> int:
        """Return the bytes of one checkpoint: trained tensors, corrections, what the optimiser remembers, float32.

        Of a run that ends in a dense phase those of the larger phase (`lrc/training/launch.py:check_space`).
        """
        phases = [self] if self.later is None else [self, self.later]
        most = max(checkpoint_bytes(phase.trained_shapes, optimizer, self._tables) for phase in phases)
        return most + 4 * self.correction_parameters

    @property
    def _tables(self) -> frozenset[str]:
        """Free embedding and head, which Muon moves by Adam's steps."""
        return frozenset({f"dense.{self.architecture.embedding}", f"dense.{self.architecture.head}"})

    def teacher_shape(self, name: str) -> tuple[int, ...]:
        """Return a teacher tensor's shape; a tied head has the embedding's."""
        return self.teacher.get(name) or self.teacher[self.architecture.embedding]

    def merged_size(self, name: str) -> int:
        """Return the number of values of a projected tensor after the merge."""
        shape = self.teacher_shape(name)
        return prod(shape) // shape[self.architecture.projected[name].axis] * self.d_student

    def layer(self, index: int) -> str:
        """Return the prefix of a layer's tensor names."""
        return f"{self.architecture.layers}.{index}."


def measure_sizes(
    config: Any, architecture: Architecture, variant: Variant, d_student: int, *, dense: Dense | None = None
) -> Sizes:
    """Measure both models of a teacher's config.

    Args:
        config: The teacher's transformers config.
        architecture: What discovery found in it.
        variant: The recipe's student.
        d_student: Its hidden size.
        dense: What the phase at the run's end frees; None: there is none.

    Raises:
        ConfigError: The class can't be built with `d_student`; names the nearest sizes that work.
    """
    sizes = Sizes(
        config=config,
        architecture=architecture,
        variant=variant,
        d_student=d_student,
        plan=merge_plan(architecture, variant),
        teacher=_shapes(config),
        student=_shapes(student_config(config, d_student, tied=architecture.is_student_tied(variant))),
    )
    if dense is None:
        return sizes
    return replace(sizes, later=replace(sizes, plan=merge_plan(architecture, variant, dense), dense=dense))


def _shapes(config: Any) -> Shapes:
    with torch.device("meta"):
        model = stock_model(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
