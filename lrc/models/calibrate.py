"""The calibrated start: a walk over the layers that solves every projection in closed form (docs/method.md section 8).

The student's stream `x_S` is to track `Q.T x_T`. Each layer is fitted (`models/layer_fit.py`) on the streams that the
layers before it leave, then the head. Only one layer's streams are held, plus the moments.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrc.clone.initialise import Moments, ridge_regression, tied_head_gain
from lrc.errors import ConfigError
from lrc.models.layer_fit import LayerFit
from lrc.models.pair import PairNorm
from lrc.models.pair_model import PairModel

Progress = Callable[[str, int, int], None]


@torch.no_grad()
def calibrate(
    pair: PairModel,
    teacher: nn.Module,
    basis: Tensor,
    batches: list[Tensor],
    keywords: list[dict[str, Any]],
    progress: Progress,
    *,
    passes: int,
) -> tuple[list[float], list[str]]:
    """Solve all projections of the pair, layer by layer.

    Args:
        pair: The pair; its projections hold the `pca` start, which the ridges pull to.
        teacher: The model that the pair was made from.
        basis: `Q`, `[d_T, d_S]` float64, orthonormal columns.
        batches: Ids, `[batch, seq]`, all of one shape.
        keywords: What the stock model hands to each layer beside the stream (`layer_keywords` of one batch).
        progress: Called with ("calibrate", layers done, layers), first with none done.
        passes: As `start.correction_passes`.

    Returns:
        Relative error of the student's stream after each layer: mean over tokens of
        `|Q.T x_T - x_S|^2 / |Q.T x_T|^2`. Then a line for every kind of writer that kept its `pca` start, with the
        reason and how many layers have it.
    """
    device = next(teacher.parameters()).device
    embedding = pair.base.get_submodule(
        pair.architecture.embedding.rpartition(".")[0].removeprefix(f"{pair.architecture.base}.")
    )
    student_streams, teacher_streams = [], []
    scale = pair.architecture.scale_law.at_width(basis.shape[1]).beside_embedding
    for batch in batches:
        rows = embedding(batch.to(device))
        student_streams.append(rows if scale == 1 else rows * scale)
        assert pair.lockstep.teacher_stream is not None
        teacher_streams.append(pair.lockstep.teacher_stream)
    pair.lockstep.teacher_stream = None
    errors: list[float] = []
    kept: Counter[str] = Counter()
    progress("calibrate", 0, len(pair.layers))
    for index, layer in enumerate(pair.layers):
        fit = LayerFit(layer, basis, keywords[index], pair.architecture.scales.unit_gain, passes)
        entering = [student_streams, teacher_streams]
        del student_streams, teacher_streams  # the fit frees them as it goes
        teacher_streams, student_streams = fit.run(entering.pop(), entering.pop())
        kept.update(fit.kept)
        errors.append(_stream_error(basis, teacher_streams, student_streams))
        progress("calibrate", index + 1, len(pair.layers))
    _fit_head(pair, teacher_streams, student_streams)
    return errors, [f"{what} in {count} of {len(pair.layers)} layers" for what, count in kept.items()]


def layer_keywords(pair: PairModel, teacher: nn.Module, batch: Tensor) -> list[dict[str, Any]]:
    """Return the keyword arguments (mask, rotary embeddings) that the stock model hands to each layer.

    Raises:
        ConfigError: It hands its layers more than the stream by position.
    """
    found: list[dict[str, Any]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if len(args) > 1:
            raise ConfigError("The calibrated start can't follow layers called by position. Use start.method=pca.")
        found.append(keywords)

    layers = teacher.get_submodule(pair.architecture.layers)
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers.children()]
    try:
        teacher.get_submodule(pair.architecture.base)(
            input_ids=batch.to(next(teacher.parameters()).device), use_cache=False
        )
    finally:
        for handle in handles:
            handle.remove()
    return found


def _stream_error(basis: Tensor, teacher: list[Tensor], student: list[Tensor]) -> float:
    errors = []
    for teacher_stream, student_stream in zip(teacher, student, strict=True):
        wanted = teacher_stream.float() @ basis.float()
        off = (wanted - student_stream.float()).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)
        errors.append(off.mean())
    return float(torch.stack(errors).mean())


def _fit_head(pair: PairModel, teacher: list[Tensor], student: list[Tensor]) -> None:
    """The head's projection from the last norms; with a shared projection only the last gain is free."""
    norm = pair.base.get_submodule(pair.architecture.norm.removeprefix(f"{pair.architecture.base}."))
    assert isinstance(norm, PairNorm)
    projection = pair.head.parameter("")
    moments = Moments(projection.shape[1], projection.shape[0], projection.device)
    for teacher_stream, student_stream in zip(teacher, student, strict=True):
        pair.lockstep.teacher_stream = teacher_stream
        student_normed = norm(student_stream)
        every = torch.ones(student_stream.shape[:2], device=student_stream.device)  # no token reads the last stream
        assert pair.lockstep.teacher_stream is not None
        moments.add(student_normed, pair.lockstep.teacher_stream, every)
    pair.lockstep.teacher_stream = None
    if not pair.variant.tie_embedding_projection:
        projection.copy_(ridge_regression(moments, projection.T).T)
    elif "weight" in norm.plan.gains:
        gain = tied_head_gain(projection.double(), pair.head.teacher.get_parameter("weight"), moments)
        norm.parameter("weight").copy_(gain - 1.0 + pair.architecture.scales.unit_gain)
        if "bias" in norm.plan.gains:  # what was fitted multiplies the norm's whole output, its bias included
            bias = norm.parameter("bias")
            bias.copy_(bias * gain)
