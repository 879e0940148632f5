"""The calibrated start's fit of one layer: readers, then the writer, stage by stage (docs/method.md section 8).

Readers: `P = argmin E|n_T - P n_S|^2`, the teacher's normed input from the student's (independent of the weight).
Writers: `P = argmin E w |P.T o - (Q.T x_T(after) - x_S(before))|^2`, where `o` is the teacher's writer on the student's
activations and `w` the inverse mean square of the teacher's stream, so each stage also corrects what came before.
Corrections, of a student that has them: `C = argmin E w |C a - (what P.T o leaves over)|^2`, where `a` are the
student's activations before the writer: more numbers than `o` has, so `C` reaches what no projection does.
In both a window's first token counts more than one row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lrc.clone.initialise import Moments, ridge_regression
from lrc.clone.sites import Stage, corrected_weight, projection_of
from lrc.errors import ConfigError
from lrc.models.pair import PairLayer
from lrc.models.trace import first_tensor

FIRST_TOKEN_WEIGHT = 10.0
"""How often a window's first token counts: most heads rest on it and its activations are massive (arXiv 2309.17453,
2402.17762), so an error there reaches every token after it, yet it is one row of a window."""


def importance(batch: Tensor) -> Tensor:
    """Weigh each token of `[batch, seq, d]` streams for a regression, `[batch, seq]`."""
    weights = torch.ones(batch.shape[:2], device=batch.device)
    weights[:, 0] = FIRST_TOKEN_WEIGHT
    return weights


@dataclass
class _StageCall:
    """How a layer calls the module around a stage's readers and writers."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    slot: int | str
    """Which argument is the readers' input."""


class _Reached(Exception):
    """Ends a module's forward where the writer would run."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class LayerFit:
    """One layer's fit: streams in, streams out, projections, corrections and gains solved on the way."""

    def __init__(self, layer: PairLayer, basis: Tensor, keywords: dict[str, Any], unit_gain: float) -> None:
        """Take a layer.

        Args:
            layer: Its projections hold the values that the ridge pulls to.
            basis: `Q`, `[d_T, d_S]`.
            keywords: What the stock model hands to the layer beside the stream.
            unit_gain: Stored value of a norm gain that multiplies by one.
        """
        self.layer = layer
        self.basis = basis.float()
        self.keywords = keywords
        self.unit_gain = unit_gain
        self.stages = layer.cloning.stages
        self.calls: dict[int, _StageCall] = {}
        self.kept: list[str] = []
        """Writers that kept the values they had before the fit, each with the reason."""

    def run(self, teacher: list[Tensor], student: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Fit the layer on its input streams, `[batch, seq, d]` each; return its output streams.

        No stream is held longer than it is needed; the inputs are freed on the way if the caller has let go of them.
        """
        points = [list(streams) for streams in zip(*map(self._teacher_points, teacher), strict=True)]
        del teacher
        reasons = [self._unfit(position, stage) for position, stage in enumerate(self.stages)]
        entered = student if any(reasons) else []
        for position, (stage, reason) in enumerate(zip(self.stages, reasons, strict=True)):
            self._fit_readers(stage, points[position], student)
            points[position].clear()
            if reason is None:
                student = self._fit_writer(position, stage, points[position + 1], student)
            else:
                self.kept.append(f"{', '.join(stage.writers)} ({reason})")
                student = self._student_after(position, entered)
        return points[-1], student

    def _unfit(self, position: int, stage: Stage) -> str | None:
        """Why a stage's writer can't be fitted, or None."""
        if stage.bare:
            return "its experts are stacked"
        if len(stage.writers) != 1:
            return "several writers answer one input"
        if stage.residual is None:
            return "it runs beside another stage, or what it writes is not simply added"
        if stage.post_norm is not None and stage.residual != 1:
            return "what its post-norm makes is multiplied"
        if position not in self.calls:
            return f"its input is made inside {_parent(stage)}"
        return None

    def _student_after(self, position: int, entered: list[Tensor]) -> list[Tensor]:
        """Run the student's layer as it stands; return its stream after a stage."""
        tensors, twin = self.layer.student_tensors(), self.layer.twin
        following = self.stages[position + 1] if position + 1 < len(self.stages) else None
        streams: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Reached(args[0])

        handle = None
        if following is not None:
            handle = twin.get_submodule(following.point).register_forward_pre_hook(stop)
        try:
            for stream in entered:
                try:
                    made = first_tensor(functional_call(twin, tensors, (stream,), self.keywords))
                    assert made is not None
                    streams.append(made)
                except _Reached as reached:
                    streams.append(reached.value)
        finally:
            if handle is not None:
                handle.remove()
        return streams

    def _teacher_points(self, stream: Tensor) -> list[Tensor]:
        """The teacher's stream at each stage of the layer and after it; remembers how the stages are called."""
        points: list[Tensor] = []
        handles = []
        for position, stage in enumerate(self.stages):
            handles += self._watch(position, stage, points)
        try:
            after = first_tensor(self.layer.teacher(stream, **self.keywords))
        finally:
            for handle in handles:
                handle.remove()
        assert after is not None
        return [*points, after]

    def _watch(self, position: int, stage: Stage, points: list[Tensor]) -> list[Any]:
        teacher = self.layer.teacher
        point = teacher.get_submodule(stage.point)
        handles = [point.register_forward_pre_hook(lambda _, args: points.append(args[0]))]
        if position in self.calls:
            return handles
        pending: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        parent = teacher.get_submodule(_parent(stage))
        handles.append(
            parent.register_forward_pre_hook(
                lambda _, args, keywords: pending.append((args, keywords)), with_kwargs=True
            )
        )

        def find(_: nn.Module, args: tuple[Any, ...]) -> None:
            arguments, keywords = pending[0]
            slots: dict[int | str, Any] = dict(enumerate(arguments))
            slots.update(keywords)
            slot = next((key for key, value in slots.items() if value is args[0]), None)
            if slot is not None:
                self.calls[position] = _StageCall(arguments, keywords, slot)

        handles.append(teacher.get_submodule(stage.module_of(stage.readers[0])).register_forward_pre_hook(find))
        return handles

    def _student_normed(self, stage: Stage, tensors: dict[str, Tensor], stream: Tensor) -> Tensor:
        if stage.norm is None:
            return stream
        normed: Tensor = _call(self.layer.twin, stage.norm, tensors, stream)
        return normed

    def _fit_readers(self, stage: Stage, teacher: list[Tensor], student: list[Tensor]) -> None:
        d_student, d_teacher = self.basis.shape[1], self.basis.shape[0]
        moments = Moments(d_student, d_teacher, self.basis.device)
        tensors = self.layer.student_tensors()
        norm = self.layer.teacher.get_submodule(stage.norm) if stage.norm else nn.Identity()
        for teacher_stream, student_stream in zip(teacher, student, strict=True):
            student_normed = self._student_normed(stage, tensors, student_stream)
            moments.add(student_normed, norm(teacher_stream), importance(student_stream))
        names = dict.fromkeys(projection_of(reader, stage, self.layer.cloning.variant) for reader in stage.readers)
        projections = [self.layer.parameter(name) for name in names]
        fitted = ridge_regression(moments, projections[0].T).T
        for projection in projections:
            projection.copy_(fitted)

    def _fit_writer(
        self, position: int, stage: Stage, teacher_after: list[Tensor], student: list[Tensor]
    ) -> list[Tensor]:
        """Fit the stage's writer and return the student's stream after it."""
        factor = stage.residual
        assert factor is not None
        (writer,) = stage.writers
        d_teacher, d_student = self.basis.shape
        moments = Moments(d_teacher, d_student, self.basis.device)
        tensors = self.layer.student_tensors()
        module = self.layer.teacher.get_submodule(writer)
        is_corrected = corrected_weight(stage) in self.layer.plan.corrections
        writes, inners = [], []
        for after, before in zip(teacher_after, student, strict=True):
            inner = self._writer_input(position, stage, writer, tensors, before)
            writes.append(module.forward(inner))
            missing, weights = self._target(stage, writes[-1], after, before)
            moments.add(writes[-1], missing, weights)
            if is_corrected:
                inners.append(inner)
        projection = self.layer.parameter(writer)
        fitted = ridge_regression(moments, projection)
        projection.copy_(fitted)
        correction = None
        if is_corrected:
            correction = self._fit_correction(stage, fitted.float(), inners, writes, teacher_after, student)
        added = []
        while writes:  # each is freed as soon as it is used
            piece = writes.pop(0).float() @ fitted.float()
            added.append((piece if correction is None else piece + inners.pop(0).float() @ correction) * factor)
        if stage.post_norm is not None:
            self._fit_post_gain(stage.post_norm, added, teacher_after, student)
            tensors = self.layer.student_tensors()
            added = [_call(self.layer.twin, stage.post_norm, tensors, piece.to(student[0].dtype)) for piece in added]
        return [(before + piece).to(before.dtype) for before, piece in zip(student, added, strict=True)]

    def _target(self, stage: Stage, written: Tensor, after: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """What a stage's writer has to make, `[batch, seq, d_S]`, and each token's weight."""
        assert stage.residual is not None
        missing, scale = self._missing(after, before)
        missing = missing / stage.residual
        if stage.post_norm is not None:
            # the post-norm divides by the root mean square, so the fit aims at the size before it
            size = written.float().square().mean(-1).clamp_min(1e-12)
            missing, scale = missing * size.sqrt()[..., None], scale / size
        return missing, scale * importance(before)

    def _fit_correction(
        self,
        stage: Stage,
        fitted: Tensor,
        inners: list[Tensor],
        writes: list[Tensor],
        teacher_after: list[Tensor],
        student: list[Tensor],
    ) -> Tensor:
        """Fit what the merged writer leaves over by the writer's own inputs; returns `C.T`, `[d_inner, d_S]`."""
        moments = Moments(inners[0].shape[-1], fitted.shape[1], fitted.device)
        for inner, written, after, before in zip(inners, writes, teacher_after, student, strict=True):
            missing, weights = self._target(stage, written, after, before)
            moments.add(inner, missing - written.float() @ fitted, weights)
        correction = ridge_regression(moments, None).float()
        name = corrected_weight(stage)
        assert name is not None
        self.layer.correction(name).copy_(correction.T)
        return correction

    def _missing(self, after: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """What the stage has to add to the student's stream, `[batch, seq, d_S]`, and each token's weight."""
        after = after.float()
        return after @ self.basis - before.float(), 1 / after.square().mean(-1).clamp_min(1e-12)

    def _fit_post_gain(
        self, post_norm: str, added: list[Tensor], teacher_after: list[Tensor], student: list[Tensor]
    ) -> None:
        """Least squares a channel for the gain of a norm on a writer's output."""
        name = f"{post_norm}.weight"
        dtype = student[0].dtype
        gain = self.layer.parameter(name)
        unit = torch.full_like(gain, self.unit_gain)
        above = torch.zeros(unit.shape[0], dtype=torch.float64, device=unit.device)
        below = torch.zeros_like(above)
        for piece, after, before in zip(added, teacher_after, student, strict=True):
            normed = _call(self.layer.twin, post_norm, {name: unit.to(dtype)}, piece.to(dtype)).float()
            missing, weight = self._missing(after, before)
            above += (normed * missing * weight[..., None]).sum((0, 1))
            below += (normed.square() * weight[..., None]).sum((0, 1))
        gain.copy_(above / below.clamp_min(1e-30) - 1.0 + self.unit_gain)

    def _writer_input(
        self, position: int, stage: Stage, writer: str, tensors: dict[str, Tensor], stream: Tensor
    ) -> Tensor:
        """Run the student's stage from its stream up to the writer; return the writer's input."""
        call = self.calls[position]
        normed = self._student_normed(stage, tensors, stream)
        arguments = tuple(normed if slot == call.slot else value for slot, value in enumerate(call.arguments))
        keywords = {key: normed if key == call.slot else value for key, value in call.keywords.items()}

        def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Reached(args[0])

        handle = self.layer.twin.get_submodule(writer).register_forward_pre_hook(stop)
        try:
            _call(self.layer.twin, _parent(stage), tensors, *arguments, **keywords)
        except _Reached as reached:
            return reached.value
        finally:
            handle.remove()
        raise ConfigError(f"{writer} did not run where discovery saw it.")


def _parent(stage: Stage) -> str:
    """The innermost module that holds all readers and writers of a stage."""
    paths = [stage.module_of(name).split(".")[:-1] for name in (*stage.readers, *stage.writers)]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _call(twin: nn.Module, name: str, tensors: dict[str, Tensor], *arguments: Any, **keywords: Any) -> Any:
    """Call a submodule of the twin with the tensors of the part that lie below it."""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return functional_call(twin.get_submodule(name), own, arguments, keywords)
