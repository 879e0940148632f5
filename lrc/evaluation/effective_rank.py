"""Effective rank of the residual stream after each layer: what collapses when a student is poor (RED)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrc.clone.initialise import effective_rank
from lrc.errors import NumericsError
from lrc.models.pair_model import PairModel


@contextmanager
def stream_ranks(layers: Iterable[nn.Module], *, largest: int | None = None) -> Iterator[list[float]]:
    """Watch layers' outputs while the block runs; its list holds the effective ranks afterwards.

    States are divided by their root mean square first, so that a few huge tokens do not decide.

    Args:
        layers: The layers, in order.
        largest: Directions that count (`clone/initialise.py:effective_rank`); None: all.

    Raises:
        NumericsError: A layer's states were not finite.
    """
    sums: dict[int, Tensor] = {}
    handles = []
    for index, layer in enumerate(layers):

        def add(_: nn.Module, args: Any, output: Any, index: int = index) -> None:
            states = (output[0] if isinstance(output, tuple) else output).detach().flatten(0, -2).float()
            states = states * states.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
            sums[index] = sums.get(index, 0) + (states.T @ states).double()

        handles.append(layer.register_forward_hook(add))
    ranks: list[float] = []
    try:
        yield ranks
    finally:
        for handle in handles:
            handle.remove()
    broken = next((index for index in sorted(sums) if not bool(sums[index].isfinite().all())), None)
    if broken is not None:
        raise NumericsError(
            f"States must be finite to have an effective rank, but those after layer {broken} (from 0) hold NaN or "
            "infinity. The model's weights are damaged or overflow in its dtype."
        )
    ranks.extend(float(effective_rank(sums[index], largest=largest)) for index in sorted(sums))


@contextmanager
def pair_stream_ranks(pair: PairModel) -> Iterator[list[float]]:
    """Watch the student's stream of a pair."""
    with torch.no_grad(), stream_ranks(pair.layers) as ranks:
        yield ranks


@contextmanager
def best_stream_ranks(pair: PairModel) -> Iterator[list[float]]:
    """Watch the teacher's stream of a pair, the student's width of directions: what a student could have at best."""
    teacher = [layer.teacher for layer in pair.layers]
    with torch.no_grad(), stream_ranks(teacher, largest=pair.student_config.hidden_size) as ranks:
        yield ranks
