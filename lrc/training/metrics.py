"""The log of a run: sums kept on the device between log steps, one JSON line each time, one console line beside it."""

import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from lrc.errors import CheckpointError
from lrc.models.pair_model import PairLosses, StepCounts
from lrc.training.beside import write_beside
from lrc.training.checkpoint import write_failure


class Interval:
    """Loss sums since the last log line, stacked on the device; nothing is read before `means`."""

    def __init__(self, accelerator: Accelerator, num_layers: int, num_terms: int) -> None:
        self.accelerator = accelerator
        self._sums = torch.zeros(3 + num_layers * num_terms, dtype=torch.float64, device=accelerator.device)
        self._shape = (num_layers, num_terms)
        self._classes: dict[str, tuple[float | Tensor, int]] = {}
        self.counts = StepCounts(labels=0, positions=0, sequences=0)
        self.steps = 0

    def add(self, losses: PairLosses) -> None:
        """Add one micro-batch of this rank."""
        row = torch.cat([torch.stack([losses.objective.detach(), losses.lm.sum(), losses.kl]), losses.clone.flatten()])
        self._sums += row.to(self._sums)

    def add_classes(self, lm: Tensor, labels: list[int], classes: tuple[str, ...]) -> None:
        """Add each sequence's LM sum to its data class."""
        for value, count, name in zip(lm.detach(), labels, classes, strict=True):
            total, seen = self._classes.get(name, (0.0, 0))
            self._classes[name] = (total + value, seen + count)

    def close_step(self, counts: StepCounts) -> None:
        """Count one optimiser step."""
        self.steps += 1
        self.counts = StepCounts(
            labels=self.counts.labels + counts.labels,
            positions=self.counts.positions + counts.positions,
            sequences=self.counts.sequences + counts.sequences,
        )

    def means(self, term_names: tuple[str, ...], points: Sequence[Collection[str]] | None = None) -> dict[str, Any]:
        """Read the interval's means over all ranks (the one moment that waits for the device).

        Args:
            term_names: Columns of the clone sums.
            points: Which of them each layer has (`PairModel.points`): the others are None, and no part of the mean of
                all; None: each has all.
        """
        sums = self.accelerator.reduce(self._sums, reduction="sum").cpu()
        labels, positions = max(1, self.counts.labels), max(1, self.counts.positions)
        clone = (sums[3:] / positions).view(self._shape)
        has_point = torch.ones(self._shape, dtype=torch.bool)
        if points is not None:
            has_point = torch.tensor([[name in layer for name in term_names] for layer in points], dtype=torch.bool)
        measured = clone[has_point]
        result: dict[str, Any] = {
            "loss": float(sums[0]) / max(1, self.steps),
            "lm_loss": float(sums[1]) / labels,
            "kl_loss": float(sums[2]) / labels,
            "clone_loss": float(measured.mean()) if measured.numel() else 0.0,
            "clone": {name: _numbers(clone[:, column], has_point[:, column]) for column, name in enumerate(term_names)},
        }
        if self._classes:
            result["lm_loss_by_class"] = self._means_by_class()
        return result

    def _means_by_class(self) -> dict[str, float]:
        """Read each data class's mean over all ranks, each of which has sequences, if not of the same classes."""
        sums: dict[str, tuple[float, int]] = {}
        own = {name: (float(total), count) for name, (total, count) in self._classes.items()}
        for classes in gather_object([own]):
            for name, (total, count) in classes.items():
                before, seen = sums.get(name, (0.0, 0))
                sums[name] = (before + total, seen + count)
        return {name: total / max(1, count) for name, (total, count) in sorted(sums.items())}


def _numbers(values: Tensor, is_there: Tensor) -> list[float | None]:
    return [float(value) if there else None for value, there in zip(values, is_there, strict=True)]


class MetricsLog:
    """`metrics.jsonl`, the console and the trackers."""

    def __init__(self, path: Path, accelerator: Accelerator, *, total_steps: int) -> None:
        self.path = path
        self.accelerator = accelerator
        self.total_steps = total_steps
        self._began = time.monotonic()
        self._first_step: int | None = None

    def rewind(self, step: int, *, is_measured: bool = True) -> None:
        """Drop lines after `step`, and a last line that a kill cut off, before a resumed run appends.

        Args:
            step: Where the run goes on.
            is_measured: Whether the held-out measure of `step` stays; else it will be made again.
        """
        if not self.accelerator.is_main_process or not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                values = json.loads(line)
                is_redone = values.get("kind") == "held_out" and not is_measured
                if values["step"] < step or (values["step"] == step and not is_redone):
                    kept.append(line)
            except (ValueError, KeyError):
                continue
        write_beside(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Append one line (main process only) and hand its numbers to the trackers."""
        if not self.accelerator.is_main_process:
            return
        try:
            with self.path.open("a") as handle:
                handle.write(json.dumps({"kind": kind, **values}) + "\n")
        except OSError as error:
            raise CheckpointError(write_failure(f"The log {self.path}", error)) from error
        numbers = {f"{kind}/{key}": value for key, value in values.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=values["step"])
        self.say(self._line(kind, values))
        if values.get("has_collapsed"):
            self.say(
                f"warning    step {values['step']:>6}  the student's residual stream has collapsed: effective rank "
                f"{values['effective_rank_share']:.0%} of what its width allows (docs/quality.md)"
            )

    def say(self, line: str) -> None:
        """Print a line on standard error."""
        print(line, file=sys.stderr, flush=True)

    def _line(self, kind: str, values: dict[str, Any]) -> str:
        step = values["step"]
        if kind == "held_out":
            rank = f"  rank {values['effective_rank_share']:.0%}" if "effective_rank_share" in values else ""
            return (
                f"held out   step {step:>6}  KL {values['kl']:.4f}  agreement {values['top1_agreement']:.1%}  "
                f"CE {values['cross_entropy']:.4f} (teacher {values['teacher_cross_entropy']:.4f}){rank}"
            )
        if self._first_step is None:
            self._first_step = step
        done = step - self._first_step
        pace = (time.monotonic() - self._began) / done if done else None
        left = "" if pace is None else f"  ETA {format_seconds(pace * (self.total_steps - step))}"
        if done == 0:
            self._began = time.monotonic()
        return (
            f"step {step:>6}/{self.total_steps}  loss {values['loss']:.4f}  LM {values['lm_loss']:.4f}  "
            f"KL {values['kl_loss']:.4f}  clone {values['clone_loss']:.4f}  "
            f"{values['tokens_per_second']:.0f} tokens/s{left}"
        )


def format_seconds(seconds: float) -> str:
    """`3725` -> `1:02:05`, `65` -> `1:05`."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
