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
"""Steps whose median gradient norm the next one is compared with."""
LEAST = 16
"""Steps before a norm can be called exploding."""
MAX_ROLLBACKS = 3
"""Rollbacks to the same checkpoint before the run stops."""
RECORD = "divergence.jsonl"


def find_divergence(settings: TrainConfig, state: RunState, *, objective: float, norm: float) -> str | None:
    """Say what is wrong with a step before it is done, None if nothing is.

    A loss or a gradient norm that is not finite, or a norm above `train.divergence_factor` times the median of the
    last steps'.
    """
    if not (math.isfinite(objective) and math.isfinite(norm)):
        return f"loss and gradient must be finite, found loss {objective:g} and gradient norm {norm:g}"
    if settings.divergence_factor is None or len(state.gradient_norms) < LEAST:
        return None
    median = statistics.median(state.gradient_norms)
    if norm > settings.divergence_factor * median:
        return (
            f"the gradient norm must be at most {settings.divergence_factor:g} times the median {median:.3g} of the "
            f"last {len(state.gradient_norms)} steps, found {norm:.3g}"
        )
    return None


def with_norm(state: RunState, norm: float) -> RunState:
    """Add a step's norm to those that the next one is compared with."""
    return replace(state, gradient_norms=(*state.gradient_norms, norm)[-WINDOW:])


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
