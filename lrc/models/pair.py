"""The pair: teacher and student in lockstep, one layer of each at a time.

The stock student model runs its own forward, so masks, rotary embeddings and layer order are transformers'. Its
embedding, layers and last norm are replaced by pairs that carry the teacher's stream along (`Lockstep`), merge the
student's weights, and reduce the clone terms on the spot. A `PairLayer` is the unit of activation checkpointing: the
merge happens inside it, so recomputation sees the same weights and gradients are exact.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lrc.clone.losses import clone_error
from lrc.clone.merge import lift, merge, project
from lrc.clone.sites import Stage, Variant, clone_terms, projection_of
from lrc.config import ObjectiveConfig
from lrc.models.part import Pieces, ProjectedPart


class Lockstep:
    """What travels beside the student's stream during one forward pass."""

    def __init__(self) -> None:
        self.teacher_stream: Tensor | None = None
        self.valid: Tensor | None = None
        """`[batch, seq]` positions that count in clone terms; None: measure none."""
        self.terms: list[Tensor] = []
        """`[terms]` sums of each layer so far."""


@dataclass(frozen=True, kw_only=True)
class Cloning:
    """Where and how one layer's activations are compared."""

    stages: tuple[Stage, ...]
    variant: Variant
    term_names: tuple[str, ...]
    """The columns of the clone sums, the same for all layers."""
    objective: ObjectiveConfig


class PairEmbedding(ProjectedPart):
    """Both embeddings; only the rows of the batch are projected."""

    def __init__(self, pieces: Pieces, lockstep: Lockstep) -> None:
        super().__init__(pieces)
        self.lockstep = lockstep
        self.twin.padding_idx = None  # type: ignore[assignment]  # rows are renumbered below; nothing is padding

    def forward(self, input_ids: Tensor) -> Tensor:
        with torch.no_grad():
            self.lockstep.teacher_stream = self.teacher(input_ids)
        rows = self.teacher.weight[input_ids.flatten()]  # type: ignore[index]
        ((projection, axis),) = self.plan.merges.values()
        weight = merge(rows, self.projection(projection, rows.dtype), axis)
        renumbered = torch.arange(rows.shape[0], device=input_ids.device).view_as(input_ids)
        stream: Tensor = functional_call(self.twin, {**dict(self.twin.named_buffers()), "weight": weight}, renumbered)
        return stream


class PairNorm(ProjectedPart):
    """Both last norms."""

    def __init__(self, pieces: Pieces, lockstep: Lockstep) -> None:
        super().__init__(pieces)
        self.lockstep = lockstep

    def forward(self, student_stream: Tensor) -> Tensor:
        with torch.no_grad():
            self.lockstep.teacher_stream = self.teacher(self.lockstep.teacher_stream)
        normed: Tensor = functional_call(self.twin, self.student_tensors(), student_stream, strict=True)
        return normed


class PairLayer(ProjectedPart):
    """One layer of both models and its clone terms."""

    def __init__(self, pieces: Pieces, cloning: Cloning, lockstep: Lockstep) -> None:
        super().__init__(pieces)
        self.cloning = cloning
        self.lockstep = lockstep
        self.checkpointing = False
        self._points: dict[str, Tensor] | None = None
        self._terms: dict[str, Tensor] = {}
        self._valid: Tensor | None = None
        for stage in cloning.stages:
            for term, module in clone_terms(stage, cloning.variant).items():
                if term in cloning.term_names:
                    self._attach(term, module, stage)

    def forward(self, student_stream: Tensor, **kwargs: Any) -> Tensor:
        assert self.lockstep.teacher_stream is not None
        arguments = (student_stream, self.lockstep.teacher_stream, self.lockstep.valid, kwargs)
        student: Tensor
        if self.checkpointing and torch.is_grad_enabled():
            student, teacher, terms = checkpoint(self._run, *arguments, use_reentrant=False)
        else:
            student, teacher, terms = self._run(*arguments)
        self.lockstep.teacher_stream = teacher
        if terms is not None:
            self.lockstep.terms.append(terms)
        return student

    def _run(
        self, student_stream: Tensor, teacher_stream: Tensor, valid: Tensor | None, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        self._points = {} if valid is not None else None
        self._terms = {}
        self._valid = valid
        with torch.no_grad():
            teacher: Tensor = self.teacher(teacher_stream, **kwargs)
        student: Tensor = functional_call(self.twin, self.student_tensors(), (student_stream,), kwargs, strict=True)
        self._points = None
        if valid is None:
            return student, teacher, None
        zero = torch.zeros((), device=student.device)
        return student, teacher, torch.stack([self._terms.get(name, zero) for name in self.cloning.term_names])

    def _attach(self, term: str, module: str, stage: Stage) -> None:
        """Hook the teacher's module to hand its clone point over, and the twin's to be measured against it."""
        from_input = module in stage.readers and self.cloning.variant.shares_input(stage.kind)

        def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self._points is not None:
                self._points[term] = args[0] if from_input else output

        def measure(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self._points is not None:
                self._terms[term] = self._error(term, module, stage, args[0], output)

        self.teacher.get_submodule(module).register_forward_hook(keep)
        self.twin.get_submodule(module).register_forward_hook(measure)

    def _error(self, term: str, module: str, stage: Stage, student_input: Tensor, student_output: Tensor) -> Tensor:
        assert self._points is not None and self._valid is not None
        teacher = self._points.pop(term)
        student = student_output
        if module in stage.readers:
            if self.cloning.variant.shares_input(stage.kind):
                student = lift(student_input, self._projection_of(module, stage, student_input.dtype))
        elif stage.kind == "attn" and self.cloning.objective.attention_output_space == "teacher":
            student = self.teacher.get_submodule(module).forward(student_input)  # forward: no hook is to run
        else:
            teacher = project(teacher, self._projection_of(module, stage, student_output.dtype))
        return clone_error(student, teacher, self._valid, self.cloning.objective.clone_error)

    def _projection_of(self, module: str, stage: Stage, dtype: torch.dtype) -> Tensor:
        return self.projection(projection_of(module, stage, self.cloning.variant), dtype)
