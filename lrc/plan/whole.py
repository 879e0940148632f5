"""The whole plan: everything that `lrc plan` prints, as data."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lrc.config import CHECKPOINTING, Checkpointing
from lrc.plan.devices import Machine
from lrc.plan.flops import StepFlops, optimizer_flops, step_flops
from lrc.plan.memory import Peak, StepMemory
from lrc.plan.run_costs import Disk, Fit, Pace, RunShape, best_way, compute_dtype, disk, pace, peak_of, ways
from lrc.plan.sizes import Sizes
from lrc.teacher_config import TeacherWeightsConfig


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run on a machine."""

    fit: Fit
    peak: Peak
    """At the recipe's batch."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A machine, every way to run on it, and the first that fits."""

    machine: Machine
    ways: tuple[Way, ...]
    fit: Fit | None
    pace: Pace | None
    """At the recipe's batch, or the largest that fits if that is smaller."""
    full_pace: Pace | None
    """At the largest batch, which pays least for merges a token; the step then has more tokens."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run costs."""

    sizes: Sizes
    shape: RunShape
    machine: Machine
    flops: StepFlops
    """Of one micro-batch, without what activation checkpointing computes again."""
    recomputed: dict[Checkpointing, float]
    """FLOPs that each policy of activation checkpointing adds to a micro-batch."""
    optimizer_flops: float
    """Of one optimiser step, of all devices together."""
    head_gradient_bytes: float
    """Of the merged head, in float32, where it does not go past the merge: a part of `working` in the head."""
    ways: tuple[Way, ...]
    offers: tuple[Offer, ...]
    disk: Disk
    problem: str | None = field(default=None)
    """Why there is nothing about memory, if so."""

    @property
    def flops_per_token(self) -> float:
        """All FLOPs of a token without checkpointing."""
        return self.flops.total / (self.shape.batch * self.shape.sequence)


class Planner:
    """Memories by dtype, traced once each."""

    def __init__(self, sizes: Sizes, shape: RunShape, *, wanted_dtype: str) -> None:
        """Take what a plan is made for; `wanted_dtype` is the recipe's `train.compute_dtype`."""
        self.sizes = sizes
        self.shape = shape
        self.wanted_dtype = wanted_dtype
        self._memories: dict[tuple[torch.dtype, TeacherWeightsConfig], StepMemory] = {}

    def memory(self, machine: Machine) -> StepMemory:
        """The step's memory in the dtype that a machine computes in; a CPU has nowhere to offload to."""
        dtype, held = compute_dtype(self.wanted_dtype, machine), self.shape.teacher_weights
        if machine.device.is_cpu:
            held = replace(held, offload="none")
        if (dtype, held) not in self._memories:
            self._memories[dtype, held] = StepMemory(
                self.sizes,
                self.shape.objective,
                sequence=self.shape.sequence,
                dtype=dtype,
                masked=self.shape.masked,
                accumulates=self.shape.accumulation > 1,
                merge=self.shape.merge,
                optimizer=self.shape.optimizer,
                teacher_weights=held,
            )
        return self._memories[dtype, held]

    def plan(self, machine: Machine, others: tuple[Machine, ...]) -> Plan:
        """Plan the run for a machine, and look at other ones beside it."""
        shape, memory = self.shape, self.memory(machine)
        problem = None
        found: tuple[Way, ...] = ()
        offers: tuple[Offer, ...] = ()
        try:
            found = self._ways(machine)
            offers = tuple(self._offer(other) for other in others)
        except Exception as error:  # noqa: BLE001  a family's code may need values; the text is shown to the user
            problem = problem_text(error)
        return Plan(
            sizes=self.sizes,
            shape=shape,
            machine=machine,
            flops=self._flops("none"),
            recomputed={policy: self._flops(policy).checkpointing for policy in CHECKPOINTING if policy != "none"},
            optimizer_flops=optimizer_flops(self.sizes, shape.optimizer),
            head_gradient_bytes=memory.head_gradient(),
            ways=found,
            offers=offers,
            disk=disk(self.sizes, shape),
            problem=problem,
        )

    def _flops(self, policy: Checkpointing) -> StepFlops:
        shape = self.shape
        return step_flops(self.sizes, shape.objective, batch=shape.batch, sequence=shape.sequence, checkpointing=policy)

    def _ways(self, machine: Machine) -> tuple[Way, ...]:
        memory, shape = self.memory(machine), self.shape
        fits = ways(machine, memory, refused=shape.refused)
        return tuple(Way(fit=fit, peak=peak_of(memory, fit, shape.batch)) for fit in fits)

    def _offer(self, machine: Machine) -> Offer:
        found = self._ways(machine)
        fit = best_way([way.fit for way in found], self.shape.batch)
        if fit is None:
            return Offer(machine=machine, ways=found, fit=None, pace=None, full_pace=None)
        batches = (min(self.shape.batch, fit.largest_batch), fit.largest_batch)
        own, full = (pace(self.sizes, self.shape, fit, batch=batch) for batch in batches)
        return Offer(machine=machine, ways=found, fit=fit, pace=own, full_pace=full)


def problem_text(error: Exception) -> str:
    """Return in one line why a step could not be followed."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values for JSON; FLOPs a token, bytes, tokens a second, hours."""
    positions = plan.shape.batch * plan.shape.sequence
    return {
        "teacher": {
            "model_type": plan.sizes.architecture.model_type,
            "hidden_size": plan.sizes.d_teacher,
            "parameters": plan.sizes.teacher_parameters,
        },
        "student": {"hidden_size": plan.sizes.d_student, "parameters": plan.sizes.student_parameters},
        "teacher_weights": vars(plan.shape.teacher_weights),
        "trained_parameters": plan.sizes.trained_parameters,
        "correction_parameters": plan.sizes.correction_parameters,
        "batch_size": plan.shape.batch,
        "sequence_length": plan.shape.sequence,
        "tokens": plan.shape.tokens,
        "mfu": plan.shape.mfu,
        "flops_per_token": {
            name: value / positions for name, value in vars(plan.flops).items() if name != "checkpointing"
        },
        "recomputed_flops_per_token": {policy: value / positions for policy, value in plan.recomputed.items()},
        "flops_per_token_without_checkpointing": plan.flops_per_token,
        "optimizer_flops_per_step": plan.optimizer_flops,
        "machine": plan.machine.title,
        "usable_bytes_per_device": plan.machine.usable_bytes,
        "head_gradient_bytes": plan.head_gradient_bytes,
        "memory_per_device": [_way_to_dict(way) for way in plan.ways],
        "machines": [_offer_to_dict(offer) for offer in plan.offers],
        "disk_bytes": vars(plan.disk),
        "memory_problem": plan.problem,
    }


def _way_to_dict(way: Way) -> dict[str, Any]:
    return {
        "strategy": way.fit.strategy.name,
        "activation_checkpointing": way.fit.checkpointing,
        "bytes": vars(way.peak.use) | {"total": way.peak.use.total},
        "peaks_in": way.peak.moment,
        "largest_batch": way.fit.largest_batch,
    }


def _offer_to_dict(offer: Offer) -> dict[str, Any]:
    fit, run, full = offer.fit, offer.pace, offer.full_pace
    return {
        "machine": offer.machine.title,
        "usable_bytes_per_device": offer.machine.usable_bytes,
        "memory_per_device": [_way_to_dict(way) for way in offer.ways],
        "strategy": fit.strategy.name if fit else None,
        "activation_checkpointing": fit.checkpointing if fit else None,
        "largest_batch": fit.largest_batch if fit else 0,
        "tokens_per_second": run.tokens_per_second if run else None,
        "hours": run.hours if run else None,
        "tokens_per_second_at_largest_batch": full.tokens_per_second if full else None,
        "hours_at_largest_batch": full.hours if full else None,
    }
