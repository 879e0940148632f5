"""What a run costs on a machine: the cheapest way that fits, tokens a second, hours; and the disk it needs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from lrc.config import CHECKPOINTING, Checkpointing, Merge, ObjectiveConfig, OptimizerName
from lrc.plan.devices import Machine
from lrc.plan.flops import optimizer_flops, step_flops
from lrc.plan.memory import Peak, StepMemory
from lrc.plan.sizes import Sizes
from lrc.plan.strategies import Strategy, merges_once_on, strategies_for
from lrc.teacher_config import NATIVE, TeacherWeightsConfig

PUBLISHED_MFU = 0.25
"""What the published 84,000 tokens a second of LRC-1.5B on 8 H800 come to by the count of `lrc/plan/flops.py`."""
SMALL_TOKENS = 2**16
"""Vocabularies up to this take two bytes a token in shards, larger ones four."""


@dataclass(frozen=True, kw_only=True)
class RunShape:
    """What a plan has to know of a run beside its models."""

    objective: ObjectiveConfig
    sequence: int
    batch: int
    """Rows of a micro-batch on one device, as the recipe asks."""
    accumulation: int
    merge: Merge
    """The recipe's `train.merge`."""
    optimizer: OptimizerName
    masked: bool
    tokens: float
    """Training tokens of the whole run."""
    checkpoints: int
    """Checkpoints that stay on the disk."""
    mfu: float
    teacher_weights: TeacherWeightsConfig = NATIVE
    refused: frozenset[str] = frozenset()
    """Names of strategies that training refuses for the recipe."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One way to run on a machine."""

    machine: Machine
    strategy: Strategy
    checkpointing: Checkpointing
    largest_batch: int
    """0: not even one row fits."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast one way runs."""

    batch: int
    """Rows of a device's micro-batch."""
    tokens_per_second: float
    hours: float


Memories = Callable[[Machine], StepMemory]
"""The memory of a step in the dtype that a machine computes in."""


def compute_dtype(wanted: str, machine: Machine) -> torch.dtype:
    """Return the dtype that a plan assumes; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if wanted == "auto":
        return torch.float32 if machine.device.is_cpu else torch.bfloat16
    return torch.float32 if wanted == "float32" else torch.bfloat16


def ways(machine: Machine, memory: StepMemory, *, refused: Collection[str] = ()) -> list[Fit]:
    """List every way to run on a machine, each with every policy of activation checkpointing.

    Args:
        machine: What it runs on.
        memory: Of a step there.
        refused: Names of strategies that training refuses for the recipe.
    """
    return [
        Fit(
            machine=machine,
            strategy=strategy,
            checkpointing=checkpointing,
            largest_batch=memory.largest_batch(
                strategy, devices=machine.count, limit=machine.usable_bytes, checkpointing=checkpointing
            ),
        )
        for strategy in strategies_for(machine.count, memory.teacher_weights, refused=refused)
        for checkpointing in CHECKPOINTING
    ]


def best_way(fits: list[Fit], batch: int) -> Fit | None:
    """Choose the first way that takes the batch, else the one that takes the most rows; None if none takes a row.

    Policies that compute less a second time come first.
    """
    ordered = sorted(fits, key=lambda fit: CHECKPOINTING.index(fit.checkpointing))
    first = next((fit for fit in ordered if fit.largest_batch >= batch), None)
    most = max(ordered, key=lambda fit: fit.largest_batch, default=None)
    return first or (most if most is not None and most.largest_batch else None)


def pace(sizes: Sizes, shape: RunShape, fit: Fit, *, batch: int) -> Pace | None:
    """Tokens a second at the stated share of the machine's peak; None where the peak is not known.

    Devices share the optimiser's products, which come once a step.
    """
    if fit.machine.device.flops_per_second is None:
        return None
    shares = merges_once_on(fit.strategy, shape.merge, accumulates=shape.accumulation > 1)
    flops = step_flops(
        sizes,
        shape.objective,
        batch=batch,
        sequence=shape.sequence,
        checkpointing=fit.checkpointing,
        merge_shared_by=shape.accumulation if shares else 1,
    ).total
    step_tokens = batch * shape.sequence * shape.accumulation * fit.machine.count
    per_token = flops / (batch * shape.sequence) + optimizer_flops(sizes, shape.optimizer) / step_tokens
    speed = fit.machine.count * fit.machine.device.flops_per_second * shape.mfu / per_token
    return Pace(batch=batch, tokens_per_second=speed, hours=shape.tokens / speed / 3600)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a run writes."""

    data: float
    checkpoint: float
    """One: trained tensors, corrections and what the optimiser remembers, float32."""
    checkpoints: float
    """All that are kept, the best one beside them, and the one being written (`lrc/training/launch.py:check_space`)."""
    student: float
    """The converted student in bfloat16."""


def disk(sizes: Sizes, shape: RunShape) -> Disk:
    """Sum up the disk that a run needs."""
    one = sizes.checkpoint_bytes(shape.optimizer)
    return Disk(
        data=shape.tokens * (2 if sizes.vocabulary <= SMALL_TOKENS else 4),
        checkpoint=one,
        checkpoints=one * (shape.checkpoints + 2),
        student=2 * sizes.student_parameters,
    )


def peak_of(memory: StepMemory, fit: Fit, batch: int) -> Peak:
    """Find the highest point of a way at a batch."""
    return memory.peak(fit.strategy, devices=fit.machine.count, batch=batch, checkpointing=fit.checkpointing)
