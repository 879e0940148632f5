"""The pair: teacher and student in lockstep, one layer of each at a time.

The stock student model runs its own forward, so masks, rotary embeddings and layer order are transformers'. Its
embedding, layers and last norm are replaced by pairs that carry the teacher's stream along (`Lockstep`), merge the
student's weights, and reduce the clone terms on the spot. A `PairLayer` is the unit of activation checkpointing: the
merge happens inside it, so recomputation sees the same weights and gradients are exact.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lrc.clone.losses import clone_error
from lrc.clone.merge import lift, merge, project
from lrc.clone.sites import Stage, Variant, compared_projections, layer_terms, projection_of
from lrc.config import Checkpointing, ObjectiveConfig
from lrc.models.kept_products import KeptProducts
from lrc.models.part import Pieces, ProjectedPart
from lrc.models.short_attention import ShortAttention
from lrc.models.tiny_bert import HIDDEN, MAP, map_rows
from lrc.models.trace import first_tensor


class Lockstep:
    """What travels beside the student's stream during one forward pass."""

    def __init__(self) -> None:
        self.runs_teacher = True
        self.teacher_stream: Tensor | None = None
        """None where no teacher is to run."""
        self.alignment: Tensor | None = None
        """`[d_S, d_T]` that student states are compared through (`method: tiny_bert`)."""
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
    map_module: str | None = None
    """The module whose attention maps are compared, if they are."""


class PairEmbedding(ProjectedPart):
    """Both embeddings; only the rows of the batch are projected."""

    is_merged_whole = False

    def __init__(self, pieces: Pieces, lockstep: Lockstep, *, scale: float) -> None:
        """Join both embeddings; `scale` is what the stock model multiplies the embedding's output with."""
        super().__init__(pieces)
        self.lockstep = lockstep
        self.scale = scale
        self.twin.padding_idx = None  # type: ignore[assignment]  # rows are renumbered below; nothing is padding

    def forward(self, input_ids: Tensor, anchor: Tensor | None = None) -> Tensor:
        """Embed ids; `anchor`, a zero that needs a gradient, lets a strategy see when this part's backward is done."""
        if self.lockstep.runs_teacher:
            with torch.no_grad():
                teacher = self.teacher(input_ids)
                self.lockstep.teacher_stream = teacher if self.scale == 1 else teacher * self.scale
        weight = self.rows(input_ids.flatten())
        renumbered = torch.arange(weight.shape[0], device=input_ids.device).view_as(input_ids)
        stream: Tensor = functional_call(self.twin, {**dict(self.twin.named_buffers()), "weight": weight}, renumbered)
        return stream if anchor is None else stream + anchor

    def rows(self, ids: Tensor) -> Tensor:
        """Return the student's rows of `[positions]` ids, `[positions, d_S]`: merged, free, or the sum of both."""
        table: Tensor = self.teacher.weight  # type: ignore[assignment]
        found = [
            merge(table[ids], self.projection(name, table.dtype), axis) for name, axis in self.plan.merges.values()
        ]
        found += [functional.embedding(ids, self.dense[name]).to(table.dtype) for name in self.plan.dense]
        return found[0] if len(found) == 1 else found[0] + found[1]


class PairNorm(ProjectedPart):
    """Both last norms."""

    def __init__(self, pieces: Pieces, lockstep: Lockstep) -> None:
        super().__init__(pieces)
        self.lockstep = lockstep

    def forward(self, student_stream: Tensor) -> Tensor:
        if self.lockstep.teacher_stream is not None:
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
        self.checkpointing: Checkpointing = "none"
        self.run: Callable[..., tuple[Any, Tensor | None, Tensor | None]] = self._run
        """What a forward runs, and where it is recomputed runs again; compiled ones take its place."""
        self.attention: Callable[[], AbstractContextManager[Any]] = ShortAttention
        """Surrounds the student's run on a CPU."""
        self._points: dict[str, Tensor] | None = None
        self._versions: dict[str, int] = {}
        """Of the points that were kept without a copy."""
        self._rewritten: set[str] = set()
        """Terms whose point the teacher's layer writes into later (OLMo clamps queries, keys and values in place)."""
        self._terms: dict[str, Tensor] = {}
        self._valid: Tensor | None = None
        self._kept: KeptProducts | None = None
        for term, (site, stage) in layer_terms(cloning.stages, cloning.variant).items():
            if term in cloning.term_names:
                self._attach(term, site, stage)
        if cloning.map_module is not None:
            self._attach_maps(cloning.map_module)

    def __getattr__(self, name: str) -> Any:
        """Answer for the stock layer: some forwards ask their layers for a kind or a window."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_twin" not in self.__dict__:
                raise
            return getattr(self.twin, name)

    def forward(self, student_stream: Tensor, *args: Any, **kwargs: Any) -> Any:
        lockstep = self.lockstep
        assert (lockstep.teacher_stream is not None) is lockstep.runs_teacher
        policy: Checkpointing = self.checkpointing if torch.is_grad_enabled() else "none"
        arguments = (student_stream, lockstep.teacher_stream, lockstep.valid, lockstep.alignment, policy, args, kwargs)
        if policy == "layer":
            student, teacher, terms = checkpoint(self.run, *arguments, use_reentrant=False)
        else:
            student, teacher, terms = self.run(*arguments)
        lockstep.teacher_stream = teacher
        if terms is not None:
            lockstep.terms.append(terms)
        return student

    def _run(
        self,
        student_stream: Tensor,
        teacher_stream: Tensor | None,
        valid: Tensor | None,
        alignment: Tensor | None,
        policy: Checkpointing,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """Return what the student's layer returns (the stream, or a tuple that opens with it), and the teacher's."""
        teacher, points = None, None
        if teacher_stream is not None:
            teacher, points = self._run_teacher(teacher_stream, args, kwargs, measures=valid is not None)
        if policy != "selective":
            student, terms = self._run_student(student_stream, points, valid, alignment, args, kwargs)
            return student, teacher, terms
        kept = KeptProducts()

        def run(stream: Tensor) -> tuple[Any, Tensor | None]:
            # a run takes points out as it goes, and there are two
            own = None if points is None else dict(points)
            return self._run_student(stream, own, valid, alignment, args, kwargs, kept=kept)

        student, terms = checkpoint(run, student_stream, use_reentrant=False)
        return student, teacher, terms

    @torch.no_grad()
    def _run_teacher(
        self, stream: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, measures: bool
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the teacher's next stream, and by term what the student is compared with."""
        self._points = {} if measures else None
        self._versions = {}
        try:
            teacher = first_tensor(self.teacher(stream, *args, **kwargs))
            points = self._points
        finally:
            self._points = None
        assert teacher is not None
        lost = {term for term, version in self._versions.items() if points and points[term]._version != version}
        if lost:  # in a layer's first run only
            self._rewritten |= lost
            del teacher, points
            return self._run_teacher(stream, args, kwargs, measures=measures)
        if points is not None and HIDDEN in self.cloning.term_names:
            points[HIDDEN] = teacher
        return teacher, points

    def _run_student(
        self,
        stream: Tensor,
        points: dict[str, Tensor] | None,
        valid: Tensor | None,
        alignment: Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        kept: KeptProducts | None = None,
    ) -> tuple[Any, Tensor | None]:
        """Return what the student's layer returns, and its clone sums; `points` are used up on the way."""
        tensors = self.student_tensors()
        terms: dict[str, Tensor] = {}
        self._points, self._terms, self._valid, self._kept = points, terms, valid, kept
        attention = self.attention() if stream.device.type == "cpu" else nullcontext()
        try:
            with nullcontext() if kept is None else kept, attention:
                student = functional_call(self.twin, tensors, (stream, *args), kwargs, strict=True)
        finally:
            # recomputation ends early, by an exception: what stayed here would keep the layer's graph and all that it
            # saved alive until the next forward
            self._points, self._terms, self._kept = None, {}, None
        if valid is None:
            return student, None
        assert points is not None
        if HIDDEN in points and alignment is not None:
            ours = first_tensor(student)
            assert ours is not None
            lifted = ours @ alignment.to(ours.dtype)
            terms[HIDDEN] = clone_error(lifted, points.pop(HIDDEN), valid, self.cloning.objective.clone_error)
        zero = torch.zeros((), device=stream.device)
        return student, torch.stack([terms.get(name, zero) for name in self.cloning.term_names])

    def _keep(self, term: str, value: Tensor) -> None:
        """Keep a clone point of the teacher for the student's run."""
        assert self._points is not None
        if term in self._rewritten or torch.compiler.is_compiling():  # a compiler drops copies that change nothing
            value = value.clone()
        else:
            self._versions[term] = value._version
        self._points[term] = value

    def _measuring(self) -> AbstractContextManager[None]:
        """Surround what measures within the student's run: its products are not the student's."""
        return nullcontext() if self._kept is None else self._kept.paused()

    def compared_projections(self) -> frozenset[str]:
        """List the projections that clone terms use as they are; they stay when their tensors are freed."""
        return compared_projections(
            self.cloning.stages,
            self.cloning.variant,
            self.cloning.term_names,
            attention_output_space=self.cloning.objective.attention_output_space,
        )

    def _attach(self, term: str, site: str, stage: Stage) -> None:
        """Hook the teacher's module to hand its clone point over, and the twin's to be measured against it."""
        from_input = site in stage.readers and self.cloning.variant.shares_input(stage.kind)

        def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._points is not None:
                self._keep(term, _activation(args if from_input else output))

        def measure(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._points is not None:
                with self._measuring():
                    self._terms[term] = self._error(term, site, stage, _activation(args), _activation(output))

        module = stage.module_of(site)
        self.teacher.get_submodule(module).register_forward_hook(keep)
        self.twin.get_submodule(module).register_forward_hook(measure)

    def _attach_maps(self, module: str) -> None:
        """Hook the attention of both models to compare their maps."""

        def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._points is not None:
                self._points[MAP] = map_rows(output)

        def measure(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self._points is not None and self._valid is not None:
                kind = self.cloning.objective.clone_error
                self._terms[MAP] = clone_error(map_rows(output), self._points.pop(MAP), self._valid, kind)

        self.teacher.get_submodule(module).register_forward_hook(keep)
        self.twin.get_submodule(module).register_forward_hook(measure)

    def _error(self, term: str, site: str, stage: Stage, student_input: Tensor, student_output: Tensor) -> Tensor:
        assert self._points is not None and self._valid is not None
        teacher = self._points.pop(term)
        student = student_output
        if site in stage.readers:
            if self.cloning.variant.shares_input(stage.kind):
                student = lift(student_input, self._projection_of(site, stage, student_input.dtype))
        elif stage.kind == "attn" and self.cloning.objective.attention_output_space == "teacher":
            student = self.teacher.get_submodule(site).forward(student_input)  # forward: no hook is to run
        else:
            teacher = project(teacher, self._projection_of(site, stage, student_output.dtype))
        positions = self._valid.shape  # experts and routers see all positions in one row
        student, teacher = student.reshape(*positions, -1), teacher.reshape(*positions, -1)
        return clone_error(student, teacher, self._valid, self.cloning.objective.clone_error)

    def _projection_of(self, site: str, stage: Stage, dtype: torch.dtype) -> Tensor:
        return self.projection(projection_of(site, stage, self.cloning.variant), dtype)


def _activation(value: Any) -> Tensor:
    """The activation among a module's arguments or outputs: a router's logits come with scores and indices."""
    found = first_tensor(value)
    assert found is not None
    return found
