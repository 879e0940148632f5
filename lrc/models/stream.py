"""The teacher's residual stream on calibration text: its second moment and its channels' magnitudes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrc.clone.initialise import ProductSum
from lrc.clone.sites import Stage
from lrc.errors import NumericsError
from lrc.models.compute import dtype_name
from lrc.models.pair_model import PairModel


@dataclass(frozen=True, kw_only=True)
class StreamMoments:
    """Moments over all tokens and all points where something reads the stream."""

    second_moment: Tensor
    """`E[x x.T]` of the RMS-normalised stream, `[d_T, d_T]` float64; of the centred one where that was asked for."""
    mean_magnitude: Tensor
    """`E|x|` of the raw stream a channel, `[d_T]` float64."""


@contextmanager
def stream_readers(pair: PairModel, teacher: nn.Module, use: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Hand every stream point of the teacher's forward to `use`: the input of each stage's norm and of the last.

    A norm that two stages share is one point, and so are the readers of a stage without a norm. What `use` returns, if
    anything, is read there instead.
    """
    points = [
        tuple(f"{pair.architecture.layers}.{index}.{module}" for module in _reading_modules(stage))
        for index, stages in enumerate(pair.architecture.stages)
        for stage in stages
    ]
    handles = []
    for modules in dict.fromkeys([*points, (pair.architecture.norm,)]):
        hook = _point_hook(use, len(modules))
        handles += [teacher.get_submodule(module).register_forward_pre_hook(hook) for module in modules]
    with removed_after(handles):
        yield


def _reading_modules(stage: Stage) -> tuple[str, ...]:
    """Name the modules that get the stream of a stage, relative to the layer."""
    if stage.norm or stage.block:
        return (stage.point,)
    return tuple(dict.fromkeys(stage.module_of(reader) for reader in stage.readers))


def _point_hook(use: Callable[[Tensor], Tensor | None], readers: int) -> Callable[..., tuple[Any, ...] | None]:
    """Return the hook of a point's modules, `readers` of them, that calls `use` once for what they all get."""
    calls: list[tuple[Tensor, Tensor | None]] = []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        known = [read for stream, read in calls if stream is args[0]]
        read = known[0] if known else use(args[0])
        calls.append((args[0], read))
        if len(calls) == readers:
            calls.clear()  # so that no stream outlives its point
        return None if read is None else (read, *args[1:])

    return hook


@contextmanager
def removed_after(handles: list[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_base(
    pair: PairModel,
    teacher: nn.Module,
    batches: list[Tensor],
    stage: str,
    progress: Callable[[str, int, int], None],
    *,
    use: Callable[[Tensor], None] = lambda states: None,
) -> None:
    """Run the teacher's base over the batches and tell of `stage` after each, first with none done.

    `use` is called with the states after the last norm, `[batch, seq, d_T]`.

    Raises:
        NumericsError: These states are not finite.
    """
    base = teacher.get_submodule(pair.architecture.base)
    device = next(teacher.parameters()).device
    progress(stage, 0, len(batches))
    for done, batch in enumerate(batches):
        states = base(input_ids=batch.to(device), use_cache=False).last_hidden_state
        if not bool(states.isfinite().all()):
            raise NumericsError(
                f"The teacher's states ({dtype_name(states.dtype)}) are not finite on the calibration text. Check its "
                "weights, or set train.compute_dtype=float32."
            )
        use(states)
        del states  # hooks in its graph hold the streams, which would outlive the next forward
        progress(stage, done + 1, len(batches))


def norm_magnitudes(
    pair: PairModel, teacher: nn.Module, batches: list[Tensor], progress: Callable[[str, int, int], None]
) -> Tensor:
    """Run the teacher's base over the batches and rank its channels by what its norms hand on.

    The importance of an embedding channel by Minitron (Muralidharan et al. 2024, arXiv 2407.14679), with a plain mean
    over tokens and norms.

    Args:
        pair: Tells which norms read the stream.
        teacher: The stock teacher.
        batches: Ids, `[batch, seq]` each.
        progress: Called with ("channels", batches done, batches), first with none done.

    Returns:
        `E|n|` a channel over all tokens and all norms, `n` the norm's output with its gain, `[d_T]` float64.
    """
    device = next(teacher.parameters()).device
    total = torch.zeros(pair.architecture.hidden_size, dtype=torch.float64, device=device)
    rows = 0

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal rows
        flat = output.flatten(0, -2)
        total.add_(flat.float().abs().sum(0))
        rows += flat.shape[0]

    layers = pair.architecture.layers
    norms = {
        f"{layers}.{index}.{stage.norm}"
        for index, stages in enumerate(pair.architecture.stages)
        for stage in stages
        if stage.norm is not None
    }
    handles = [
        teacher.get_submodule(name).register_forward_hook(hook) for name in sorted({*norms, pair.architecture.norm})
    ]
    with removed_after(handles):
        run_base(pair, teacher, batches, "channels", progress)
    return total / rows


@torch.no_grad()
def subtracts_mean(pair: PairModel, teacher: nn.Module) -> bool:
    """Say whether the norms that read the stream subtract the mean over the channels, by what the last one does."""
    norm = teacher.get_submodule(pair.architecture.norm)
    parameter = next(teacher.parameters())
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, pair.architecture.hidden_size, generator=generator).to(parameter)
    normed = norm(rows)
    return bool((norm(rows + 1) - normed).abs().max() < 0.1 * normed.abs().max())


def normalised_stream(stream: Tensor, *, is_centred: bool) -> tuple[Tensor, Tensor]:
    """Return a stream as the norms see it, `[tokens, d]` float32 of root mean square 1, and what it was divided by.

    Args:
        stream: `[..., d]`.
        is_centred: Take each state's mean over the channels out first.

    Returns:
        The states, and their root mean squares, `[tokens, 1]`.
    """
    flat = stream.flatten(0, -2).float()
    if is_centred:
        flat = flat - flat.mean(-1, keepdim=True)
    size = flat.square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt()
    return flat / size, size


def inverse_size(stream: Tensor) -> Tensor:
    """Return one over the mean square of each state of a stream `[..., d]`, float32."""
    return 1 / stream.float().square().mean(-1).clamp_min(1e-12)


def stream_moments(
    pair: PairModel,
    teacher: nn.Module,
    batches: list[Tensor],
    progress: Callable[[str, int, int], None],
    *,
    is_centred: bool = False,
) -> StreamMoments:
    """Run the teacher's base over the batches and sum the stream's moments.

    Args:
        pair: Tells where the stream is read.
        teacher: The stock teacher.
        batches: Ids, `[batch, seq]` each.
        progress: Called with ("basis", batches done, batches), first with none done.
        is_centred: Take each state's mean over the channels out before it is normalised, as the norms do.
    """
    width = pair.architecture.hidden_size
    device = next(teacher.parameters()).device
    second = ProductSum(width, width, device)
    magnitude = torch.zeros(width, dtype=torch.float64, device=device)
    rows = 0

    def add(stream: Tensor) -> None:
        nonlocal rows
        magnitude.add_(stream.flatten(0, -2).float().abs().sum(0))
        normed, _ = normalised_stream(stream, is_centred=is_centred)
        second.add(normed, normed)
        rows += normed.shape[0]

    with stream_readers(pair, teacher, add):
        run_base(pair, teacher, batches, "basis", progress)
    return StreamMoments(second_moment=second.total() / rows, mean_magnitude=magnitude / rows)
