"""Gradient steps of the calibrated start: a few matrices of one stage, over batches that are all there."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

STEP_TOKENS = 2_048
"""Tokens of one step, at least; a step takes whole batches."""
RATE = 1.0
"""Of Adam, in units of the matrix's root mean square over the square root of its inputs: a step that moves every entry
one way changes an output by its own size, whatever the width."""
BETAS = (0.9, 0.95)
WARM_UP = 5
"""Steps that the rate rises over; then it falls to zero."""


def tuned(
    weights: dict[str, Tensor],
    loss: Callable[[int, dict[str, Tensor]], Tensor],
    tokens: Sequence[int],
    *,
    passes: int,
) -> dict[str, Tensor]:
    """Lower the sum of a loss over batches by Adam.

    Args:
        weights: Where the matrices begin, `[d_out, d_in]` by name; they stay as they are.
        loss: Of a batch, given by its place, with such matrices in float32: a scalar, summed over its tokens.
        tokens: Of each batch.
        passes: Times that each batch is seen, in an order that is always the same.

    Returns:
        The matrices where they end, float32.
    """
    moved = {name: weight.detach().float().clone().requires_grad_() for name, weight in weights.items()}
    rates = [RATE * float(weight.detach().square().mean().sqrt()) / weight.shape[1] ** 0.5 for weight in moved.values()]
    groups = [{"params": [weight], "lr": 0.0} for weight in moved.values()]
    optimizer = torch.optim.Adam(groups, betas=BETAS, fused=True)
    steps = list(_steps(tokens, passes))
    for step, places in enumerate(steps):
        share = min(1.0, (step + 1) / WARM_UP) * (1 - step / len(steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        with torch.enable_grad():
            for place in places:
                loss(place, moved).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.detach() for name, weight in moved.items()}


def _steps(tokens: Sequence[int], passes: int) -> Iterator[list[int]]:
    """Yield the batches of each step: all of them in every pass, shuffled."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(passes):
        places: list[int] = []
        for place in torch.randperm(len(tokens), generator=generator).tolist():
            places.append(place)
            if sum(tokens[other] for other in places) >= STEP_TOKENS:
                yield places
                places = []
        if places:
            yield places
