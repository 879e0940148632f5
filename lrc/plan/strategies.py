"""Strategies: the ways of splitting a run over devices, and what each of them splits (docs/plan.md)."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lrc.config import Merge
from lrc.models.step_weights import merges_once
from lrc.teacher_config import NATIVE, TeacherWeightsConfig

MERGE_ONCE = ("1 device", "DDP", "FSDP2")
"""Strategies whose micro-batches can share a step's merged weights (`lrc/models/step_weights.py`)."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a run is split over devices."""

    name: str
    setting: Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
    """As `train.strategy` names it."""
    optimizer: bool = False
    """The optimiser's moments are split over the devices; the same for the other flags."""
    gradients: bool = False
    weights: bool = False
    """The teacher's weights and the projections, gathered a pair layer at a time."""


ONE_DEVICE = Strategy(name="1 device", setting="ddp")
STRATEGIES = (
    Strategy(name="DDP", setting="ddp"),
    Strategy(name="ZeRO-1", setting="zero1", optimizer=True),
    Strategy(name="ZeRO-2", setting="zero2", optimizer=True, gradients=True),
    Strategy(name="ZeRO-3", setting="zero3", optimizer=True, gradients=True, weights=True),
    Strategy(name="FSDP2", setting="fsdp2", optimizer=True, gradients=True, weights=True),
)


def strategies_for(
    devices: int, teacher_weights: TeacherWeightsConfig = NATIVE, *, refused: Collection[str] = ()
) -> tuple[Strategy, ...]:
    """List the strategies that so many devices can use.

    One that splits weights leaves none in main memory.

    Args:
        devices: How many.
        teacher_weights: How the teacher is held.
        refused: Names of strategies that training refuses for the recipe.
    """
    if devices == 1:
        return (ONE_DEVICE,)
    ways = (way for way in STRATEGIES if not (way.weights and teacher_weights.offload == "cpu"))
    return tuple(way for way in ways if way.name not in refused)


def merges_once_on(strategy: Strategy, setting: Merge, *, accumulates: bool) -> bool:
    """Whether a step of this strategy merges once, at `setting` of `train.merge`; ZeRO always in each micro-batch."""
    can = strategy.name in MERGE_ONCE
    return can and merges_once(setting, accumulates=accumulates, is_sharded=strategy.weights)
