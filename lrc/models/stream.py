"""The teacher's residual stream on calibration text: its second moment and its channels' magnitudes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lrc.clone.initialise import ProductSum
from lrc.models.pair_model import PairModel


@dataclass(frozen=True, kw_only=True)
class StreamMoments:
    """Moments over all tokens and all points where something reads the stream."""

    second_moment: Tensor
    """`E[x x.T]` of the RMS-normalised stream, `[d_T, d_T]` float64; of the centred one where that was asked for."""
    mean_magnitude: Tensor
    """`E|x|` of the raw stream a channel, `[d_T]` float64."""


@contextmanager
def stream_readers(pair: PairModel, teacher: nn.Module, use: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand every stream point of the teacher's forward to `use`: the input of each stage's norm and of the last."""
    layers = pair.architecture.layers
    points = [
        f"{layers}.{index}.{stage.point}" for index, stages in enumerate(pair.architecture.stages) for stage in stages
    ]

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        use(args[0])

    handles = [
        teacher.get_submodule(point).register_forward_pre_hook(hook) for point in [*points, pair.architecture.norm]
    ]
    with _removed_after(handles):
        yield


@contextmanager
def _removed_after(handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run_base(
    pair: PairModel, teacher: nn.Module, batches: list[Tensor], stage: str, progress: Callable[[str, int, int], None]
) -> None:
    """Run the teacher's base over the batches and tell of `stage` after each, first with none done."""
    base = teacher.get_submodule(pair.architecture.base)
    device = next(teacher.parameters()).device
    progress(stage, 0, len(batches))
    for done, batch in enumerate(batches):
        base(input_ids=batch.to(device), use_cache=False)
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
    with _removed_after(handles):
        _run_base(pair, teacher, batches, "channels", progress)
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
        flat = stream.flatten(0, -2).float()
        magnitude.add_(flat.abs().sum(0))
        if is_centred:
            flat = flat - flat.mean(-1, keepdim=True)
        flat = flat * flat.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
        second.add(flat, flat)
        rows += flat.shape[0]

    with stream_readers(pair, teacher, add):
        _run_base(pair, teacher, batches, "basis", progress)
    return StreamMoments(second_moment=second.total() / rows, mean_magnitude=magnitude / rows)
