"""Start values for a pair: one function a method, one switch.

`random`, `channel` and `pca` need at most one look at the teacher's residual stream; `calibrated` walks the layers
(`models/calibrate.py`). The formulas are in `clone/initialise.py`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lrc.clone.initialise import centred_basis, channel_selection, principal_basis, random_projection
from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.errors import ConfigError, NumericsError
from lrc.models.calibrate import calibrate, layer_keywords
from lrc.models.pair_model import PairModel
from lrc.models.part import is_bias
from lrc.models.rotate import rotate_student
from lrc.models.sensitivity import stream_sensitivity
from lrc.models.stream import norm_magnitudes, stream_moments, subtracts_mean
from lrc.models.tiny import narrow_size, random_model, tiny_config
from lrc.start_config import StartConfig

CHANNEL_SAMPLES = 15  # RED's calibration samples
SENSITIVE_SHARE = 9
"""One of so many calibration tokens is run backward too. With layers that run again, the head and two sums a point that
takes four to five forwards: half a forward over all of them, as the principal basis of half of them does."""
SENSITIVE_TOKENS = 8_192
"""At least, if there are so many: of fewer gradients the basis is no better than the principal one (docs/log.md)."""
SENSITIVE_ROW = 2_048
"""Positions at the front of a row that are run backward: what a pass keeps does not grow with longer rows."""


@dataclass(frozen=True, kw_only=True)
class StartReport:
    """What a start did."""

    method: str
    tokens: int
    seconds: float
    layer_errors: list[float] = field(default_factory=list)
    """Relative error of the student's stream after each layer; only a calibrated start knows it."""
    kept: list[str] = field(default_factory=list)
    """Writers that a calibrated start left at their `pca` values, and why."""
    unrotated: str | None = None
    """Why the student's channels were not rotated, if they were to be."""


@torch.no_grad()
def check_start(config: Any, settings: StartConfig, *, method: str) -> None:
    """Check on a tiny random model that a start can do with a family what it is to.

    Args:
        config: The teacher's transformers config.
        settings: The recipe's section.
        method: The recipe's.

    Raises:
        ConfigError: A calibrated start can't follow the layers, or the basis can't keep single channels.
    """
    if method != "clone" or settings.method not in ("pca", "calibrated"):
        return
    teacher = random_model(tiny_config(config))
    pair = PairModel(teacher, hidden_size=narrow_size(teacher.config), variant=Variant(), objective=ObjectiveConfig())
    if settings.method == "calibrated":
        layer_keywords(pair, teacher, torch.zeros(1, 2, dtype=torch.long))
    _needs_centred(pair, teacher, settings)


@torch.no_grad()
def fill_start(
    pair: PairModel,
    teacher: nn.Module,
    settings: StartConfig,
    batches: list[Tensor],
    *,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> StartReport:
    """Fill the pair's projections and gains with start values.

    Args:
        pair: The pair to fill.
        teacher: The model that the pair was made from.
        settings: The recipe's section.
        batches: Calibration ids, `[batch, seq]` each, all of one shape, without padding; `random` takes none.
        seed: Seed of `random` and of the rotation.
        progress: Called with (stage, done, total) as work goes on.

    Raises:
        ConfigError: As `check_start`, or the start doesn't fit the device.
        NumericsError: The teacher's states or gradients are not finite.
    """
    began = time.monotonic()
    _clear(pair)
    errors: list[float] = []
    kept: list[str] = []
    reason: str | None = None
    if settings.method == "random":
        batches = []
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in pair.trained().items():
            if name.startswith("projections."):
                parameter.copy_(random_projection(parameter.shape[0], parameter.shape[1], generator))
    elif settings.method == "channel":
        if settings.channel_score == "magnitude":
            batches = batches[: max(1, -(-CHANNEL_SAMPLES // batches[0].shape[0]))]
            scores = stream_moments(pair, teacher, batches, progress).mean_magnitude
        else:
            scores = norm_magnitudes(pair, teacher, batches, progress)
        _fill_channels(pair, teacher, scores)
    else:
        is_calibrated = settings.method == "calibrated"
        # before the basis, which takes long: a teacher that the walk can't follow ends here
        keywords = layer_keywords(pair, teacher, batches[0]) if is_calibrated else []
        basis = _choose_basis(pair, teacher, settings, batches, progress, seed=seed)
        _fill_basis(pair, teacher, basis)
        if is_calibrated:
            with _if_memory_gives_out(_walk_in_words(pair, batches)):
                passes = settings.correction_passes
                errors, kept = calibrate(pair, teacher, basis, batches, keywords, progress, passes=passes)
            if settings.rotation:
                reason = rotate_student(pair, seed=seed)
    tokens = sum(batch.numel() for batch in batches)
    seconds = time.monotonic() - began
    return StartReport(
        method=settings.method, tokens=tokens, seconds=seconds, layer_errors=errors, kept=kept, unrotated=reason
    )


def _clear(pair: PairModel) -> None:
    """Set gains to one, biases and corrections to zero."""
    unit_gain = pair.architecture.scales.unit_gain
    for part in pair.parts():
        for name in part.plan.gains:
            part.parameter(name).fill_(0.0 if is_bias(name) else unit_gain)
        for name in part.plan.corrections:
            part.correction(name).zero_()


@contextmanager
def _if_memory_gives_out(what: str) -> Iterator[None]:
    """Say what the device's memory is too small for, and what to set."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"The device's memory is too small for {what}") from error


def _walk_in_words(pair: PairModel, batches: list[Tensor]) -> str:
    """Say what the walk holds, and what to set for less."""
    tokens = sum(batch.numel() for batch in batches)
    beside = ", or set student.correction=none" if pair.variant.correction != "none" else ""
    what = f"the calibrated start, which holds both streams of all {tokens} calibration tokens"
    return f"{what}. Lower start.tokens{beside}."


def _choose_basis(
    pair: PairModel,
    teacher: nn.Module,
    settings: StartConfig,
    batches: list[Tensor],
    progress: Callable[[str, int, int], None],
    *,
    seed: int,
) -> Tensor:
    """Choose `Q`, `[d_T, d_S]`; with the walk of a calibrated start it takes 1.5 teacher forwards over many batches."""
    size, outliers = pair.student_config.hidden_size, settings.outlier_channels
    is_centred = _needs_centred(pair, teacher, settings)
    sensitivity = None
    if settings.method == "calibrated" and settings.basis == "sensitive":
        moment, sensitivity = _weighed_moments(pair, teacher, batches, progress, is_centred=is_centred, seed=seed)
    else:
        some = batches if settings.method == "pca" else batches[: -(-len(batches) // 2)]
        moment = stream_moments(pair, teacher, some, progress, is_centred=is_centred).second_moment
    if is_centred:
        return centred_basis(moment, size, sensitivity=sensitivity)
    return principal_basis(moment, size, outliers, sensitivity=sensitivity)


def _needs_centred(pair: PairModel, teacher: nn.Module, settings: StartConfig) -> bool:
    """Say whether the basis must keep the mean over the channels, since the norms subtract it.

    Raises:
        ConfigError: It is to keep single channels too, which are none of that basis.
    """
    is_centred = subtracts_mean(pair, teacher)
    if is_centred and settings.outlier_channels:
        raise ConfigError(
            f"start.outlier_channels must be 0 for {pair.architecture.model_type}, found {settings.outlier_channels}: "
            "its norms subtract the mean over the channels, and a basis that keeps the mean can't keep single channels."
        )
    return is_centred


def _weighed_moments(
    pair: PairModel,
    teacher: nn.Module,
    batches: list[Tensor],
    progress: Callable[[str, int, int], None],
    *,
    is_centred: bool,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return the stream's second moment and its sensitivity over a part of the calibration text, `[d_T, d_T]` each."""
    tokens = max(-(-sum(batch.numel() for batch in batches) // SENSITIVE_SHARE), SENSITIVE_TOKENS)
    fronts = [batch[:, :SENSITIVE_ROW] for batch in batches]
    some = fronts[: -(-tokens // fronts[0].numel())]
    with _if_memory_gives_out(
        "the start's gradients (start.basis: sensitive), which keep the teacher's stream at every layer for "
        f"{fronts[0].numel()} tokens. Set start.basis=principal, which needs forward passes alone."
    ):
        found = stream_sensitivity(pair, teacher, some, progress, is_centred=is_centred, seed=seed)
    if not bool(found.sensitivity.isfinite().all()):
        raise NumericsError(
            "The teacher's gradients on the calibration text are not finite. Set start.basis=principal, which needs "
            "none, or train.compute_dtype=float32."
        )
    return found.second_moment, found.sensitivity


def _embedding_scale(pair: PairModel) -> tuple[str, float]:
    """Name the embedding's projection, and say by how much the stock student multiplies its rows less than the teacher.

    With a projection that much larger, rows enter the stream in the teacher's size (Gemma; docs/method.md section 8.3).
    """
    law, architecture = pair.architecture.scale_law, pair.architecture
    scale = architecture.scales.embedding / law.at_width(pair.student_config.hidden_size).embedding
    return f"projections.{architecture.embedding.rpartition('.')[0]}", scale


def _fill_channels(pair: PairModel, teacher: nn.Module, scores: Tensor) -> None:
    """Every projection is one selection of the channels with the largest scores; their norm gains are the teacher's."""
    selection = channel_selection(scores, pair.student_config.hidden_size)
    teacher_tensors = dict(teacher.named_parameters())
    embedding, scale = _embedding_scale(pair)
    for name, parameter in pair.trained().items():
        if name.startswith("projections."):
            parameter.copy_(selection * (scale if name == embedding else 1.0))
        else:
            parameter.copy_(teacher_tensors[name.removeprefix("gains.")].double() @ selection)


def _fill_basis(pair: PairModel, teacher: nn.Module, basis: Tensor) -> None:
    """Every writer and the embedding take `Q`; readers take `diag(g_T) Q sqrt(d_T / d_S)`.

    That folds the teacher's norm gain in, and makes up for the student's norm dividing by the root mean square over
    fewer channels that hold nearly the same energy.
    """
    tensors = dict(teacher.named_parameters())
    offset = 1.0 - pair.architecture.scales.unit_gain
    layers = pair.architecture.layers
    norm_of = {
        f"projections.{layers}.{index}.{reader}": f"{layers}.{index}.{stage.norm}"
        for index, stages in enumerate(pair.architecture.stages)
        for stage in stages
        if stage.norm is not None
        for reader in (*stage.readers, f"{stage.readers[0].rpartition('.')[0]}.input")
    }
    norm_of[f"projections.{pair.head.prefix}".rstrip(".")] = pair.architecture.norm
    embedding, scale = _embedding_scale(pair)
    growth: float = (basis.shape[0] / basis.shape[1]) ** 0.5

    def reader(norm: str) -> Tensor:
        gain = tensors.get(f"{norm}.weight")  # some norms have none
        scaled: Tensor = basis if gain is None else (gain.double() + offset)[:, None] * basis
        return scaled * growth

    for name, parameter in pair.trained().items():
        if name in norm_of:
            parameter.copy_(reader(norm_of[name]))
        elif name.startswith("projections."):
            parameter.copy_(basis * (scale if name == embedding else 1.0))
        elif is_bias(name):
            norm = name.removeprefix("gains.").removesuffix(".bias")
            parameter.copy_(torch.linalg.lstsq(reader(norm), tensors[f"{norm}.bias"].double()[:, None]).solution[:, 0])
    _fill_post_norms(pair, tensors, basis)
    _fill_other_vectors(pair, tensors, basis)


def _fill_post_norms(pair: PairModel, tensors: Mapping[str, Tensor], basis: Tensor) -> None:
    """Writers whose output a norm with gain `g_T` divides take `diag(g_T) Q`, that norm `sqrt(d_T / d_S) rms(g_T)`.

    The teacher adds `g_T o / rms(o)`. The student then adds its projection, `Q.T (g_T o) / rms(o)`: a gain of its own
    acts on other channels, so the teacher's goes into the projection, and the student's gain makes up for what the
    norm divides by.
    """
    offset = 1.0 - pair.architecture.scales.unit_gain
    growth: float = (basis.shape[0] / basis.shape[1]) ** 0.5
    trained = pair.trained()
    for index, stages in enumerate(pair.architecture.stages):
        prefix = f"{pair.architecture.layers}.{index}"
        for stage in stages:
            gain = tensors.get(f"{prefix}.{stage.post_norm}.weight")
            if stage.post_norm is None or gain is None:
                continue
            gain = gain.double() + offset
            for writer in stage.writers:
                trained[f"projections.{prefix}.{writer}"].copy_(gain[:, None] * basis)
            size = float(gain.square().mean().sqrt())
            trained[f"gains.{prefix}.{stage.post_norm}.weight"].fill_(growth * size - offset)


def _fill_other_vectors(pair: PairModel, tensors: Mapping[str, Tensor], basis: Tensor) -> None:
    """Vectors `g_T` of no stage's norm (Doge's, which multiply the stream) become the diagonal of `Q.T diag(g_T) Q`.

    Of all vectors it is nearest to what `g_T` does to the stream. With a gain stored as `1 + g` it is the same.
    """
    found, trained = pair.architecture, pair.trained()
    known = {found.norm}
    for index, stages in enumerate(found.stages):
        known |= {f"{found.layers}.{index}.{norm}" for stage in stages for norm in (stage.norm, stage.post_norm)}
    for name in found.gains:
        if name.rpartition(".")[0] not in known and not is_bias(name):
            trained[f"gains.{name}"].copy_((tensors[name].double()[:, None] * basis.square()).sum(0))
