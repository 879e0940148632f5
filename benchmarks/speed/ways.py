"""Three ways to do a step on the same batches: the package's, the published one written plainly, and the floor's parts.

`Bench` holds one teacher and one pair for all of them, so that the ways differ in nothing but how they compute.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.speed.published import PublishedStep
from benchmarks.speed.shapes import Shape, random_teacher
from lrc.config import Checkpointing, ObjectiveConfig, StartConfig, TrainConfig
from lrc.models.compiled import compile_layers
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.start import fill_start
from lrc.models.step_weights import step_weights_for
from lrc.training.engine import FullEngine

PUBLISHED = ObjectiveConfig(
    temperature=40.0,
    kl_reduction="published",
    lm_weight=1.0,
    clone_error="raw",
    clone_reduction="sum",
    attention_output_space="teacher",
)
"""The published objective (docs/method.md section 10): the one that every way here computes."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch, every position labelled but the last of each row."""

    input_ids: Tensor
    labels: Tensor
    valid: Tensor


@dataclass(frozen=True)
class StepLosses:
    """A step's losses as the published objective counts them."""

    objective: float
    lm: float
    """Mean over labels, nats."""
    kl: float
    """Sum over labels / sequences."""
    clone: float
    """Sum over layers and clone points of means over positions, not weighted."""


def micro_batches(shape: Shape, count: int, device: torch.device) -> list[MicroBatch]:
    """Make random micro-batches."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        ids = torch.randint(0, shape.vocabulary, (shape.batch, shape.length), generator=generator).to(device)
        labels = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], -100)), 1)
        made.append(MicroBatch(input_ids=ids, labels=labels, valid=torch.ones_like(ids, dtype=torch.bool)))
    return made


def counts_of(batches: list[MicroBatch]) -> StepCounts:
    """Count what one optimiser step over these micro-batches holds."""
    return StepCounts(
        labels=sum(int((batch.labels != -100).sum()) for batch in batches),
        positions=sum(batch.valid.numel() for batch in batches),
        sequences=sum(batch.input_ids.shape[0] for batch in batches),
    )


def teacher_forward(teacher: nn.Module, batch: MicroBatch) -> None:
    """Run the floor's first part: the stock teacher, all logits, no gradient."""
    with torch.no_grad():
        teacher(input_ids=batch.input_ids, use_cache=False)


def student_loss(student: nn.Module, batch: MicroBatch) -> Tensor:
    """Run the forward half of the floor's second part: a stock student with the stock LM loss on all logits at once."""
    loss: Tensor = student(input_ids=batch.input_ids, labels=batch.input_ids, use_cache=False).loss
    return loss


class Bench:
    """One shape's teacher, pair, engine and micro-batches."""

    def __init__(
        self, shape: Shape, *, dtype: torch.dtype, device: torch.device, most_batches: int, optimizer: str = "adamw"
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.objective = PUBLISHED
        self.teacher = random_teacher(shape, dtype=dtype, device=device)
        self.pair = PairModel(
            self.teacher, hidden_size=shape.d_student, variant=shape.variant, objective=self.objective
        ).train()
        fill_start(self.pair, self.teacher, StartConfig(method="random"), [], seed=0)
        settings = TrainConfig(max_steps=1, optimizer=optimizer)  # type: ignore[arg-type]  # argparse has checked it
        self.engine = FullEngine(Accelerator(cpu=device.type == "cpu"), self.pair, settings, accumulation=1)
        self.batches = micro_batches(shape, most_batches, device)
        # counted here: a step that counts waits for the device
        self.counts = [counts_of(self.batches[: number + 1]) for number in range(most_batches)]
        self.published = PublishedStep(
            self.teacher,
            self.engine.trained,
            temperature=self.objective.temperature,
            alpha=self.objective.clone_weight,
        )
        self._student: nn.Module | None = None
        self._eager_runs = [layer.run for layer in self.pair.layers]
        self._compiled_runs: list[Callable[..., Any]] | None = None

    def ours(self, accumulation: int, *, checkpointing: Checkpointing = "none", compiled: bool = False) -> StepLosses:
        """Do one optimiser step as `lrc train` does."""
        self.set_compiled(compiled)
        batches, counts = self.batches[:accumulation], self.counts[accumulation - 1]
        self.pair.set_activation_checkpointing(checkpointing)
        self.engine.step_weights = step_weights_for(self.pair, self.engine.settings.merge, accumulation=accumulation)
        found = []
        for position, batch in enumerate(batches):
            with self.engine.micro_batch(is_last=position == len(batches) - 1):
                losses = self.engine.model(batch.input_ids, batch.labels, batch.valid, counts)
                self.engine.backward(losses.objective)
            found.append((losses.objective.detach(), losses.lm.sum(), losses.kl, losses.clone.sum()))
        self.update()
        self.engine.step_weights = None
        objective, lm, kl, clone = (float(torch.stack(values).sum()) for values in zip(*found, strict=True))
        return StepLosses(
            objective=objective, lm=lm / counts.labels, kl=kl / counts.sequences, clone=clone / counts.positions
        )

    def ours_forward(self, *, checkpointing: Checkpointing = "none") -> Callable[[], Tensor]:
        """Return the forward half of a step of one micro-batch."""
        batch, counts = self.batches[0], self.counts[0]

        def forward() -> Tensor:
            self.set_compiled(False)
            self.pair.set_activation_checkpointing(checkpointing)
            objective: Tensor = self.engine.model(batch.input_ids, batch.labels, batch.valid, counts).objective
            return objective

        return forward

    def set_compiled(self, wanted: bool) -> None:
        """Let the pair's layers run compiled, or as they are."""
        if wanted and self._compiled_runs is None:
            compile_layers(self.pair, print)
            self._compiled_runs = [layer.run for layer in self.pair.layers]
        runs = self._compiled_runs if wanted and self._compiled_runs is not None else self._eager_runs
        for layer, run in zip(self.pair.layers, runs, strict=True):
            layer.run = run

    def plain(self, accumulation: int = 1) -> StepLosses:
        """Do one optimiser step as published."""
        found = []
        for batch in self.batches[:accumulation]:
            losses = self.published.losses(batch.input_ids, batch.labels)
            self.engine.backward(losses[0] / accumulation)
            found.append([loss.detach() for loss in losses])
        self.published.points = []
        self.update()
        return StepLosses(*(float(torch.stack(values).mean()) for values in zip(*found, strict=True)))

    def plain_forward(self) -> Tensor:
        """Do the forward half of a published micro-batch."""
        return self.published.losses(self.batches[0].input_ids, self.batches[0].labels)[0]

    def update(self) -> None:
        """Clip the gradient and move, as the loop does."""
        self.engine.update(1e-4, lambda norm: True)

    @property
    def student(self) -> nn.Module:
        """The floor's stock student, random weights, made when it is first asked for."""
        if self._student is None:
            torch.manual_seed(0)
            with self.device:
                made: Any = AutoModelForCausalLM.from_config(self.pair.student_config, dtype=self.dtype)
            self._student = made.train()
        return self._student

    def floor_teacher(self) -> None:
        """Do the floor's first part."""
        teacher_forward(self.teacher, self.batches[0])

    def floor_student(self) -> None:
        """Do the floor's second part: forward and backward of the stock student, no optimiser."""
        student_loss(self.student, self.batches[0]).backward()
        self.student.zero_grad()

    def weights(self) -> list[Tensor]:
        """List the tensors that are there whatever the step does: both models, trained tensors, batches."""
        student = [] if self._student is None else [*self._student.parameters(), *self._student.buffers()]
        inputs = [tensor for batch in self.batches for tensor in vars(batch).values()]
        return [*self.pair.parameters(), *self.pair.buffers(), *student, *inputs]
