"""The calibrated start's fit of one layer: readers, then the writer, stage by stage (docs/method.md section 8).

Readers: `P = argmin E|n_T - P n_S|^2`, the teacher's normed input from the student's (independent of the weight); where
no norm makes it, weighed by `w` as below.
Writers: `P = argmin E w |P.T o - (Q.T x_T(after) - x_S(before))|^2`, where `o` is the teacher's writer on the student's
activations and `w` the inverse mean square of the teacher's stream, so each stage also corrects what came before.
Corrections, of a student that has them: `C = argmin E w |C a - (what P.T o leaves over)|^2`, where `a` are the
student's activations before the writer: more numbers than `o` has, so `C` reaches what no projection does.
Where all weights of an MLP have corrections, passes of gradient steps then lower the same error (`models/tune.py`).
In all a window's first token counts more than one row, but not for a gain behind a writer, one number a channel.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lrc.clone.initialise import Moments, ridge_regression
from lrc.clone.sites import Stage, corrected_weights, parent_of, projection_of
from lrc.errors import NumericsError
from lrc.models.pair import PairLayer
from lrc.models.stage_call import Reached, StageCall, call_module, stop_here, watch_call, writer_input
from lrc.models.stage_tensors import tensors_below
from lrc.models.stream import inverse_size
from lrc.models.trace import first_tensor
from lrc.models.tune import tuned

FIRST_TOKEN_WEIGHT = 10.0
"""How often a window's first token counts: most heads rest on it and its activations are massive (arXiv 2309.17453,
2402.17762), so an error there reaches every token after it, yet it is one row of a window."""


def importance(batch: Tensor) -> Tensor:
    """Weigh each token of `[batch, seq, d]` streams for a regression, `[batch, seq]`."""
    weights = torch.ones(batch.shape[:2], device=batch.device)
    weights[:, 0] = FIRST_TOKEN_WEIGHT
    return weights


class LayerFit:
    """One layer's fit: streams in, streams out, projections, corrections and gains solved on the way."""

    def __init__(
        self, layer: PairLayer, basis: Tensor, keywords: dict[str, Any], unit_gain: float, passes: int
    ) -> None:
        """Take a layer.

        Args:
            layer: Its projections hold the values that the ridge pulls to.
            basis: `Q`, `[d_T, d_S]`.
            keywords: What the stock model hands to the layer beside the stream.
            unit_gain: Stored value of a norm gain that multiplies by one.
            passes: Over the streams, to tune the corrections of an MLP that has them for all its weights.
        """
        self.layer = layer
        self.basis = basis.float()
        self.keywords = keywords
        self.unit_gain = unit_gain
        self.passes = passes
        self.stages = layer.cloning.stages
        self.calls: dict[int, StageCall] = {}
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
            return f"its input is made inside {parent_of(stage)}"
        return None

    def _student_after(self, position: int, entered: list[Tensor]) -> list[Tensor]:
        """Run the student's layer as it stands; return its stream after a stage."""
        tensors, twin = self.layer.student_tensors(), self.layer.twin
        following = self.stages[position + 1] if position + 1 < len(self.stages) else None
        streams: list[Tensor] = []
        handle = None
        if following is not None:
            handle = twin.get_submodule(following.point).register_forward_pre_hook(stop_here)
        try:
            for stream in entered:
                try:
                    made = first_tensor(functional_call(twin, tensors, (stream,), self.keywords))
                    assert made is not None
                    streams.append(made)
                except Reached as reached:
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
            point = self.layer.teacher.get_submodule(stage.point)
            handles.append(point.register_forward_pre_hook(lambda _, args: points.append(args[0])))
            if position not in self.calls:
                handles += watch_call(self.layer.teacher, stage, partial(self.calls.setdefault, position))
        try:
            after = first_tensor(self.layer.teacher(stream, **self.keywords))
        finally:
            for handle in handles:
                handle.remove()
        assert after is not None
        return [*points, after]

    def _normed(self, norm: str | None, rows: Tensor) -> Tensor:
        """What a norm of the student makes, with its gain as it stands; without one the rows as they are."""
        if norm is None:
            return rows
        normed: Tensor = call_module(self.layer.twin, norm, tensors_below(self.layer, norm), rows)
        return normed

    def _fit_readers(self, stage: Stage, teacher: list[Tensor], student: list[Tensor]) -> None:
        d_student, d_teacher = self.basis.shape[1], self.basis.shape[0]
        moments = Moments(d_student, d_teacher, self.basis.device)
        norm = self.layer.teacher.get_submodule(stage.norm) if stage.norm else nn.Identity()
        for teacher_stream, student_stream in zip(teacher, student, strict=True):
            weights = importance(student_stream)
            if stage.norm is None:
                weights = weights * inverse_size(teacher_stream)
            moments.add(self._normed(stage.norm, student_stream), norm(teacher_stream), weights)
        names = dict.fromkeys(projection_of(reader, stage, self.layer.cloning.variant) for reader in stage.readers)
        projections = [self.layer.parameter(name) for name in names]
        fitted = ridge_regression(moments, projections[0].T).T
        for projection in projections:
            projection.copy_(fitted)

    def _fit_writer(
        self, position: int, stage: Stage, teacher_after: list[Tensor], student: list[Tensor]
    ) -> list[Tensor]:
        """Fit the stage's writer, and with passes the whole stage; return the student's stream after it."""
        places = corrected_weights(stage, self.layer.cloning.variant)
        corrected = [name for name in places if name in self.layer.plan.corrections]
        added = self._solve_writer(position, stage, teacher_after, student, is_corrected=bool(corrected))
        if stage.post_norm is not None:
            self._fit_post_gain(stage.post_norm, added, teacher_after, student)
            added = [self._normed(stage.post_norm, piece.to(student[0].dtype)) for piece in added]
        if self.passes and len(corrected) > 1:
            added = self._tune(position, stage, corrected, (teacher_after, student, added))
        return [(before + piece).to(before.dtype) for before, piece in zip(student, added, strict=True)]

    def _solve_writer(
        self, position: int, stage: Stage, teacher_after: list[Tensor], student: list[Tensor], *, is_corrected: bool
    ) -> list[Tensor]:
        """Solve the writer's regressions; return what it makes of the student's stream, before a post-norm."""
        factor = stage.residual
        assert factor is not None
        (writer,) = stage.writers
        d_teacher, d_student = self.basis.shape
        moments = Moments(d_teacher, d_student, self.basis.device)
        tensors = tensors_below(self.layer, parent_of(stage), without=writer)
        module = self.layer.teacher.get_submodule(writer)
        writes, inners = [], []
        for after, before in zip(teacher_after, student, strict=True):
            inner = self._writer_input(position, stage, tensors, before)
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
        return added

    def _tune(
        self, position: int, stage: Stage, corrected: list[str], streams: tuple[list[Tensor], ...]
    ) -> list[Tensor]:
        """Tune the corrections of a stage's weights by the student's stream behind it.

        Args:
            position: The stage's.
            stage: It.
            corrected: Names of its weights with corrections.
            streams: The teacher's after the stage, the student's before it, and what the stage adds to that so far.

        Returns:
            What it adds once it is tuned; if that has no lower error, all stays as it was.

        Raises:
            NumericsError: The error is not finite.
        """
        teacher_after, student, added = streams
        begun = {name: self.layer.correction(name).clone() for name in corrected}
        for name in corrected:
            self.layer.correction(name).zero_()
        merged = {name: value.detach() for name, value in tensors_below(self.layer, parent_of(stage)).items()}

        def error(place: int, piece: Tensor) -> Tensor:
            missing, scale = self._missing(teacher_after[place], student[place])
            weights = scale * importance(student[place])
            return ((piece.float() - missing).square().sum(-1) * weights).sum()

        def tuned_piece(place: int, weights: Mapping[str, Tensor]) -> Tensor:
            cast = {name: weight.to(merged[name].dtype) for name, weight in weights.items()}
            return self._added(position, stage, {**merged, **cast}, student[place])

        def total(pieces: list[Tensor]) -> float:
            return float(torch.stack([error(place, piece) for place, piece in enumerate(pieces)]).sum())

        weights = tuned(
            {name: merged[name].float() + value for name, value in begun.items()},
            lambda place, weights: error(place, tuned_piece(place, weights)),
            [stream.shape[0] * stream.shape[1] for stream in student],
            passes=self.passes,
        )
        pieces = [tuned_piece(place, weights) for place in range(len(student))]
        before, after = total(added), total(pieces)
        if not math.isfinite(after):
            raise NumericsError(
                f"{self.layer.prefix}{parent_of(stage)} can't be tuned: the error of its stream is {after} after "
                f"{self.passes} passes, {before:.4g} before. Set student.correction=outputs, or compute in float32."
            )
        is_better = after < before
        for name in corrected:
            self.layer.correction(name).copy_(weights[name] - merged[name].float() if is_better else begun[name])
        return pieces if is_better else added

    def _added(self, position: int, stage: Stage, tensors: Mapping[str, Tensor], stream: Tensor) -> Tensor:
        """What a stage of the student, with given tensors, adds to its stream, `[batch, seq, d_S]`."""
        assert stage.residual is not None
        inner = self._writer_input(position, stage, tensors, stream)
        made: Tensor = call_module(self.layer.twin, stage.writers[0], tensors, inner)
        return self._normed(stage.post_norm, made) * stage.residual

    def _writer_input(self, position: int, stage: Stage, tensors: Mapping[str, Tensor], stream: Tensor) -> Tensor:
        """Run the student's stage from its stream up to the writer; return the writer's input."""
        return writer_input(self.layer.twin, stage, self.calls[position], tensors, self._normed(stage.norm, stream))

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
        self.layer.correction(f"{stage.writers[0]}.weight").copy_(correction.T)
        return correction

    def _missing(self, after: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """What the stage has to add to the student's stream, `[batch, seq, d_S]`, and each token's weight."""
        return after.float() @ self.basis - before.float(), inverse_size(after)

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
            normed = call_module(self.layer.twin, post_norm, {name: unit.to(dtype)}, piece.to(dtype)).float()
            missing, weight = self._missing(after, before)
            above += (normed * missing * weight[..., None]).sum((0, 1))
            below += (normed.square() * weight[..., None]).sum((0, 1))
        gain.copy_(above / below.clamp_min(1e-30) - 1.0 + self.unit_gain)
