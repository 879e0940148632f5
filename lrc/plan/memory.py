"""Memory of one device, by cause, for each way of splitting a run over devices (docs/plan.md)."""

from dataclasses import dataclass, fields
from functools import cached_property

import torch

from lrc.clone.sites import compared_projections
from lrc.config import CHECKPOINTING, Checkpointing, Merge, ObjectiveConfig, OptimizerName
from lrc.models.held_teacher import held_matrices_of
from lrc.models.terms import measured_terms
from lrc.models.weight_formats import packed_bytes
from lrc.plan.sizes import Sizes
from lrc.plan.step_trace import StepTrace, layer_kinds, trace_step
from lrc.plan.strategies import Strategy, merges_once_on
from lrc.plan.timeline import GRADIENT_BYTES, Moment, at_batch, lay_out, layer_bytes
from lrc.teacher_config import NATIVE, TeacherWeightsConfig

DEEPSPEED_BUCKET = 500_000_000
"""DeepSpeed's default reduce_bucket_size, values."""
MANY = 2**20
"""Micro-batches that share a merge where their number is not known: what takes the most memory."""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes of one device at the step's highest point, by cause."""

    teacher: float
    projections: float
    """Projections, gains, free weights and corrections, float32."""
    gradients: float
    optimizer: float
    """What the optimiser remembers, float32."""
    merged: float
    """The layers' merged weights that wait for the backward pass; all of the student's where a step merges once."""
    activations: float
    """What the backward pass will need of the layers done."""
    working: float
    """What the stretch at hand adds: in the head the merged head and chunks of logits."""
    communication: float
    """Flat buckets of a strategy, and weights gathered for the layer at hand."""

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, entry.name) for entry in fields(self)))


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The step's highest point."""

    use: MemoryUse
    moment: str


class StepMemory:
    """The memory of a teacher, a student and a row length, for any batch and strategy.

    Of a run that ends in a dense phase that of the phase which needs more.
    """

    def __init__(
        self,
        sizes: Sizes,
        objective: ObjectiveConfig,
        *,
        sequence: int,
        dtype: torch.dtype,
        masked: bool,
        accumulates: bool,
        merge: Merge = "auto",
        optimizer: OptimizerName = "adamw",
        teacher_weights: TeacherWeightsConfig = NATIVE,
    ) -> None:
        """Trace nothing yet.

        Args:
            sizes: Teacher and student.
            objective: Losses.
            sequence: Positions of a row.
            dtype: Compute dtype; the teacher's weights are held in it, if `teacher_weights` says nothing else.
            masked: Attention stays inside documents, by a mask.
            accumulates: Several micro-batches make a step, so gradients are there from the second one's begin.
            merge: `train.merge`.
            optimizer: `train.optimizer`.
            teacher_weights: How the matrices of the teacher's layers are held; on a CPU without offload.
        """
        self.sizes = sizes
        self.objective = objective
        self.sequence = sequence
        self.dtype = dtype
        self.masked = masked
        self.accumulates = accumulates
        self.merge: Merge = merge
        self.optimizer: OptimizerName = optimizer
        self.teacher_weights = teacher_weights
        self._kinds = layer_kinds(sizes)
        self._layers = {
            checkpointing: layer_bytes(sizes, itemsize=dtype.itemsize, checkpointing=checkpointing)
            for checkpointing in CHECKPOINTING
        }
        self._traces: dict[tuple[int, Checkpointing, int], StepTrace] = {}
        self._later: StepMemory | None = None
        if sizes.later is not None:
            self._later = StepMemory(
                sizes.later,
                objective,
                sequence=sequence,
                dtype=dtype,
                masked=masked,
                accumulates=accumulates,
                merge=merge,
                optimizer=optimizer,
                teacher_weights=teacher_weights,
            )

    def trace(self, batch: int, *, checkpointing: Checkpointing, merge_shared_by: int) -> StepTrace:
        """Trace a micro-batch of `batch` rows, once; see `step_trace.py:trace_step`."""
        key = (batch, checkpointing, merge_shared_by)
        if key not in self._traces:
            self._traces[key] = trace_step(
                self.sizes,
                self._kinds,
                self.objective,
                batch=batch,
                sequence=self.sequence,
                dtype=self.dtype,
                checkpointing=checkpointing,
                masked=self.masked,
                merge_shared_by=merge_shared_by,
                teacher_weights=self.teacher_weights,
            )
        return self._traces[key]

    def peak(
        self, strategy: Strategy, *, devices: int, batch: int, checkpointing: Checkpointing, exact: bool = True
    ) -> Peak:
        """Find the step's highest point on one device.

        Args:
            strategy: How the run is split.
            devices: Over how many devices.
            batch: Rows of a device's micro-batch.
            checkpointing: What the backward pass computes again.
            exact: Trace this batch; else extrapolate from 1 and 2 rows.
        """
        trace = (
            self.trace(batch, checkpointing=checkpointing, merge_shared_by=MANY if self.accumulates else 1)
            if exact
            else self._extrapolated(batch, checkpointing)
        )
        moments = lay_out(self.sizes, trace, self._kinds, self._layers[checkpointing])
        peaks = [Peak(use=self._use(moment, strategy, devices), moment=moment.name) for moment in moments]
        if self._later is not None:
            peaks.append(
                self._later.peak(strategy, devices=devices, batch=batch, checkpointing=checkpointing, exact=exact)
            )
        return max(peaks, key=lambda peak: peak.use.total)

    def _extrapolated(self, batch: int, checkpointing: Checkpointing) -> StepTrace:
        one, two = (self.trace(rows, checkpointing=checkpointing, merge_shared_by=MANY) for rows in (1, 2))
        return at_batch(one, two, batch)

    def _use(self, moment: Moment, strategy: Strategy, devices: int) -> MemoryUse:
        trained, teacher = self.sizes.trained_parameters, self.teacher_bytes
        shares = {True: 1 / devices, False: 1.0}
        gradients = float(GRADIENT_BYTES * trained) if self.accumulates else moment.gradients
        merged, merged_gradients = moment.merged, 0.0
        if merges_once_on(strategy, self.merge, accumulates=self.accumulates):
            # all merged weights from the first micro-batch on, and in the next ones their float32 gradients
            merged = float(self.dtype.itemsize * self._merged_values)
            merged_gradients = float(GRADIENT_BYTES * self._merged_values)
            gradients = float(GRADIENT_BYTES * self._direct_values)
        return MemoryUse(
            teacher=teacher * shares[strategy.weights],
            projections=GRADIENT_BYTES * self._held_values * shares[strategy.weights],
            gradients=merged_gradients + gradients * shares[strategy.gradients],
            optimizer=self.sizes.moment_bytes(self.optimizer) * shares[strategy.optimizer],
            merged=merged,
            activations=moment.kept - moment.merged,
            working=moment.working,
            communication=self._communication(strategy, devices),
        )

    @cached_property
    def _merged_values(self) -> int:
        """Values of the student's tensors that a step merges once: those of the layers and the head."""
        layers = f"{self.sizes.architecture.layers}."
        names = [name for name in self.sizes.plan.merges if name.startswith(layers)]
        head = self.sizes.vocabulary * self.sizes.d_student if self._projects_words else 0
        return sum(map(self.sizes.merged_size, names)) + head

    @property
    def _projects_words(self) -> bool:
        """Whether embedding and head are merged; a dense phase may free both."""
        return self.sizes.architecture.embedding in self.sizes.plan.merges

    @cached_property
    def _held_values(self) -> int:
        """Values that are held beside the teacher: what is trained, corrections, projections that clone terms need."""
        spare = len(self._compared - self.sizes.plan.trained) * self.sizes.d_teacher * self.sizes.d_student
        return self.sizes.trained_parameters + self.sizes.correction_parameters + spare

    @cached_property
    def _direct_values(self) -> int:
        """Trained values whose gradient comes without a merge: gains, free ones, the embedding's, clone terms'."""
        plan = self.sizes.plan
        direct = {*plan.gains.values(), *plan.free.values()} | self._compared
        if self._projects_words:
            direct.add(plan.merges[self.sizes.architecture.embedding][0])
        return sum(self.sizes.trained_size(name) for name in direct & plan.trained)

    @cached_property
    def _compared(self) -> set[str]:
        """Projections that clone terms use as they are; a dense phase may keep some, frozen, for these alone."""
        architecture, variant = self.sizes.architecture, self.sizes.variant
        terms, space = measured_terms(architecture, variant, self.objective), self.objective.attention_output_space
        return {
            f"projections.{self.sizes.layer(index)}{name}"
            for index, stages in enumerate(architecture.stages)
            for name in compared_projections(stages, variant, terms, attention_output_space=space)
        }

    @cached_property
    def teacher_bytes(self) -> int:
        """The teacher's weights on a device: in the compute dtype, or its layers' matrices as they are held.

        Offloaded, two layers of them are there at a time: the one at work and the next.
        """
        packed = [sum(self._tensor_bytes[name] for name in names) for names in self._held_names]
        total = sum(self._tensor_bytes.values())
        return total if self.teacher_weights.offload == "none" else total - sum(packed) + sum(sorted(packed)[-2:])

    @cached_property
    def _held_names(self) -> list[list[str]]:
        """What is held otherwise than in the compute dtype, layer by layer."""
        is_held = self.teacher_weights.is_held
        return held_matrices_of(self.sizes.config, self.sizes.architecture) if is_held else []

    @cached_property
    def _tensor_bytes(self) -> dict[str, int]:
        """Bytes of each teacher tensor as it is held, wherever that is."""
        held = {name for names in self._held_names for name in names}
        return {
            name: packed_bytes(shape, self.dtype, self.teacher_weights.format if name in held else "native")
            for name, shape in self.sizes.teacher.items()
        }

    def head_gradient(self) -> float:
        """Bytes of the merged head's float32 gradient, where it does not go past the merge."""
        return 4.0 * self.sizes.vocabulary * self.sizes.d_student

    def _communication(self, strategy: Strategy, devices: int) -> float:
        trained = GRADIENT_BYTES * self.sizes.trained_parameters
        bucket = min(trained, GRADIENT_BYTES * DEEPSPEED_BUCKET)
        # DeepSpeed's optimiser keeps a float32 copy of its share of the trained tensors
        copy = trained / devices
        if strategy.name == "DDP":
            return trained  # the reducer's flat buckets
        if strategy.name in ("ZeRO-1", "ZeRO-2"):
            return copy + bucket
        if strategy.weights:
            gathered = 2 * self.unit_bytes + self.root_bytes
            return gathered + (copy + bucket if strategy.name == "ZeRO-3" else self.unit_gradients)
        return 0.0

    @cached_property
    def unit_bytes(self) -> int:
        """The largest pair layer: teacher as held, projections, corrections. One is at work, the next is gathered."""
        return max(self._weights_of(self.sizes.layer(index)) for index in range(self.sizes.architecture.num_layers))

    @property
    def unit_gradients(self) -> int:
        """Gradients of the largest pair layer, whole before they are split."""
        return max(self._layers["layer"].gradients)

    @cached_property
    def root_bytes(self) -> int:
        """Embedding, last norm, head and their projections, which stay gathered all the step long."""
        layers = f"{self.sizes.architecture.layers}."
        weights = sum(size for name, size in self._tensor_bytes.items() if not name.startswith(layers))
        names = (name for name in self.sizes.plan.trained if not name.partition(".")[2].startswith(layers))
        return weights + GRADIENT_BYTES * sum(map(self.sizes.trained_size, names))

    def _weights_of(self, prefix: str) -> int:
        weights = sum(size for name, size in self._tensor_bytes.items() if name.startswith(prefix))
        plan = self.sizes.plan
        names = (name for name in plan.trained if name.partition(".")[2].startswith(prefix))
        corrected = (name for name in plan.corrections if name.startswith(prefix))
        values = sum(map(self.sizes.trained_size, names)) + sum(map(self.sizes.merged_size, corrected))
        return weights + GRADIENT_BYTES * values

    def largest_batch(self, strategy: Strategy, *, devices: int, limit: float, checkpointing: Checkpointing) -> int:
        """Find the most rows of a micro-batch that fit in `limit` bytes; 0: not even one."""

        def fits(batch: int) -> bool:
            peak = self.peak(strategy, devices=devices, batch=batch, checkpointing=checkpointing, exact=False)
            return peak.use.total <= limit

        if not fits(1):
            return 0
        low, high = 1, 2
        while fits(high):
            low, high = high, 2 * high
            if high > MOST_ROWS:
                return low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


MOST_ROWS = 65_536
"""Where the search for the largest batch ends."""
