"""The divergence guard: which step is not to be done, judged on every rank from the same numbers, and its record."""

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrc.config import TrainConfig
from lrc.data.blocks import BatchPlan, Blocks
from lrc.errors import CheckpointError
from lrc.training.checkpoint import write_failure
from lrc.training.run_state import RunState

WINDOW = 64
"""Steps with whose median loss and gradient norm the next one's are compared."""
LEAST = 16
"""Steps before a loss or a norm can be called exploding."""
LEAST_LOSS = 1.0
"""A median loss below this counts as this, a nat a token.

A trained student's loss is near zero, where an odd batch is a hundred times the median without doing harm. A student
that has fallen apart loses many nats a token: a uniform guess among 128,000 words loses 12.
"""
MAX_ROLLBACKS = 3
"""Rollbacks to the same checkpoint before the run stops."""
RECORD = "divergence.jsonl"


def find_divergence(settings: TrainConfig, state: RunState, *, objective: float, norm: float) -> str | None:
    """Say what is wrong with a step before it is done, None if nothing is.

    A loss or a gradient norm that is not finite, or one above `train.divergence_factor` times the median of the last
    steps'; for the loss, times `LEAST_LOSS` at least.
    """
    if not (math.isfinite(objective) and math.isfinite(norm)):
        return f"loss and gradient must be finite, found loss {objective:g} and gradient norm {norm:g}"
    return _find_explosion(settings, "loss", objective, state.objectives, least=LEAST_LOSS) or _find_explosion(
        settings, "gradient norm", norm, state.gradient_norms, least=0.0
    )


def _find_explosion(
    settings: TrainConfig, what: str, value: float, last: tuple[float, ...], *, least: float
) -> str | None:
    if settings.divergence_factor is None or len(last) < LEAST:
        return None
    median = statistics.median(last)
    if value <= settings.divergence_factor * max(least, median):
        return None
    counted = f" (which counts as {least:g})" if median < least else ""
    return (
        f"the {what} must be at most {settings.divergence_factor:g} times the median {median:.3g}{counted} of the last "
        f"{len(last)} steps, found {value:.3g}"
    )


def with_step(state: RunState, *, objective: float, norm: float) -> RunState:
    """Add a step's numbers to those that the next one's are compared with."""
    return replace(
        state,
        objectives=(*state.objectives, objective)[-WINDOW:],
        gradient_norms=(*state.gradient_norms, norm)[-WINDOW:],
    )


def with_skipped(state: RunState, batch: int) -> RunState:
    """Leave a batch out from here on."""
    return replace(state, skipped_batches=tuple(sorted({*state.skipped_batches, batch})))


def sources_of(blocks: Blocks, plan: BatchPlan, batch: int) -> Iterator[str]:
    """Name where every sequence of a batch came from, over all ranks and micro-batches."""
    for rank in range(plan.num_ranks):
        for indices in replace(plan, rank=rank).indices(batch, len(blocks)):
            for index in indices:
                yield blocks.where(index)


def record_divergence(folder: Path, values: dict[str, Any]) -> None:
    """Append a line to `divergence.jsonl`; a number that is not finite becomes a string.

    Raises:
        CheckpointError: The disk is full or not writable.
    """
    plain = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    try:
        with (folder / RECORD).open("a") as handle:
            handle.write(json.dumps(plain) + "\n")
    except OSError as error:
        raise CheckpointError(write_failure(str(folder / RECORD), error)) from error
