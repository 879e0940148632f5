"""What the loop works with, what a step gives, and the two acts that loop and rollback share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lrc.config import TrainConfig
from lrc.data.blocks import BatchPlan, Blocks
from lrc.models.dense import Dense
from lrc.models.pair_model import PairModel
from lrc.training.engine import Engine
from lrc.training.metrics import MetricsLog
from lrc.training.phases import Phases
from lrc.training.preemption import Preemption


@dataclass(frozen=True, kw_only=True)
class LoopParts:
    """Everything the loop works with, made by `verbs/train.py`."""

    accelerator: Accelerator
    pair: PairModel
    engine: Engine
    blocks: Blocks
    plan: BatchPlan
    """This rank's."""
    document_masking: bool
    """Attention stays inside documents."""
    settings: TrainConfig
    phases: Phases
    folder: Path
    """The verb's folder."""
    log: MetricsLog
    facts: Callable[[int, int], dict[str, Any]]
    """(step, tokens) -> content of `lrc_config.json`."""
    held_out: Callable[[int], dict[str, Any]] | None
    """Step -> the held-out measures of `metrics.jsonl`; None: there is no held-out text."""
    progress: Callable[[int, int], None]
    """Called with (steps done, steps of the run) after each step."""
    preemption: Preemption


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One step; the same on every rank."""

    objective: float
    norm: float
    """Of the gradient, before clipping."""
    divergence: str | None
    """Why the step was refused."""
    has_moved: bool
    stops: bool
    """A rank was told to stop."""


def enter_phase(parts: LoopParts, dense: Dense | None, step: int | None = None) -> None:
    """Go over to a phase if the run is in another one; a `step` is told."""
    if dense == parts.pair.dense:
        return
    parts.engine.enter(dense)
    if step is not None and dense is not None and parts.accelerator.is_main_process:
        free = sum(value.numel() for name, value in parts.pair.trained().items() if name.startswith("dense."))
        parts.log.say(f"step {step}: the dense phase begins, {free:,} free weights ({dense.tensors}, {dense.form})")


def sum_over_ranks(accelerator: Accelerator, values: list[Any]) -> list[float]:
    """Add numbers up over ranks; those that are not on the device go there together, the sums come back together."""
    if accelerator.num_processes == 1:
        return [float(value) for value in values]
    plain = [0.0 if isinstance(value, Tensor) else value for value in values]
    row = torch.tensor(plain, dtype=torch.float64).to(accelerator.device)
    for place, value in enumerate(values):
        if isinstance(value, Tensor):
            row[place] = value
    sums: list[float] = accelerator.reduce(row, reduction="sum").tolist()
    return sums
