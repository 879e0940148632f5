"""The one distillation loop: micro-batches in, an optimiser step out, checkpoints and a log on the way.

Losses are sums over the step's global counts (`StepCounts`), so any split into micro-batches and ranks gives the same
update. The learning rate and the data are functions of the step, so a checkpoint needs only tensors and a number.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lrc.config import TrainConfig
from lrc.data.blocks import Batch, BatchPlan, Blocks, step_batches
from lrc.errors import NumericsError
from lrc.evaluation.agreement import Agreement
from lrc.models.pair_model import PairModel, StepCounts
from lrc.training.checkpoint import RunState, rotate, save_checkpoint
from lrc.training.metrics import Interval, MetricsLog
from lrc.training.schedule import learning_rate

TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class LoopParts:
    """Everything the loop works with, made by `verbs/train.py`."""

    accelerator: Accelerator
    pair: PairModel
    optimizer: torch.optim.Optimizer
    """Over `pair.trained()`, one parameter group."""
    blocks: Blocks
    document_masking: bool
    """Attention stays inside documents."""
    settings: TrainConfig
    folder: Path
    """The verb's folder."""
    log: MetricsLog
    facts: Callable[[int, int], dict[str, Any]]
    """(step, tokens) -> content of `lrc_config.json`."""
    held_out: Callable[[], Agreement] | None
    progress: Callable[[int, int], None]
    """Called with (steps done, steps of the run) after each step."""


def run_loop(parts: LoopParts, state: RunState) -> Path:
    """Train from `state` to the last step.

    Returns:
        The last checkpoint.

    Raises:
        NumericsError: A loss or gradient was not finite; the optimiser has not moved.
        CheckpointError: A checkpoint can't be written.
        SystemExit: SIGTERM came; the step was finished and saved.
    """
    settings, accelerator = parts.settings, parts.accelerator
    model = accelerator.prepare_model(parts.pair) if accelerator.num_processes > 1 else parts.pair
    model.train()
    plan = BatchPlan(
        seed=settings.seed,
        batch_size=settings.batch_size,
        accumulation=settings.gradient_accumulation_steps,
        num_ranks=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    log = parts.log
    interval = _new_interval(parts)
    resumed_at, logged_tokens, logged_at = time.monotonic() - state.seconds, state.tokens, time.monotonic()
    last = parts.folder / f"checkpoint-{state.step}"
    if state.step >= settings.max_steps and not last.is_dir():  # resumed from another run's end
        last = _save(parts, state)
    with _terminate_flag() as terminated:
        while state.step < settings.max_steps:
            batches = step_batches(parts.blocks, plan, state.step, document_masking=parts.document_masking)
            counts = _global_counts(accelerator, batches)
            rate = learning_rate(settings, state.step)
            norm = _optimiser_step(parts, model, batches, counts, interval, rate)
            interval.close_step(counts)
            state = RunState(
                step=state.step + 1, tokens=state.tokens + counts.positions, seconds=time.monotonic() - resumed_at
            )
            parts.progress(state.step, settings.max_steps)
            if state.step % settings.log_steps == 0 or state.step == settings.max_steps:
                now = time.monotonic()
                means = interval.means(parts.pair.term_names)
                speed = (state.tokens - logged_tokens) / max(1e-9, now - logged_at)
                place = {"step": state.step, "tokens": state.tokens}
                pace = {"gradient_norm": norm, "learning_rate": rate, "tokens_per_second": speed}
                log.write("train", {**place, **means, **pace, "seconds": state.seconds})
                interval, logged_tokens, logged_at = _new_interval(parts), state.tokens, now
            if _is_measured(settings, state.step):
                _measure_held_out(parts, log, state)
                logged_at = time.monotonic()
            stop = _any_rank(accelerator, bool(terminated))
            if stop or state.step % settings.save_steps == 0 or state.step == settings.max_steps:
                last = _save(parts, state)
            if stop:
                raise SystemExit(TERMINATED)
    return last


def _optimiser_step(
    parts: LoopParts, model: nn.Module, batches: list[Batch], counts: StepCounts, interval: Interval, rate: float
) -> float:
    """Accumulate the step's gradient, check it, clip it, and move; return its norm before clipping."""
    accelerator, settings = parts.accelerator, parts.settings
    objective = torch.zeros((), device=accelerator.device)
    for position, batch in enumerate(batches):
        last = position == len(batches) - 1
        # DDP averages gradients over ranks; the shares are to be added
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            losses = model(
                batch.input_ids.to(accelerator.device),
                batch.labels.to(accelerator.device),
                batch.valid.to(accelerator.device),
                counts,
                None if batch.positions is None else batch.positions.to(accelerator.device),
            )
            accelerator.backward(losses.objective * accelerator.num_processes)
        objective += losses.objective.detach()
        interval.add(losses)
        if settings.log_data_classes:
            interval.add_classes(losses.lm, batch.labels_per_row, batch.data_classes)
    (group,) = parts.optimizer.param_groups
    trained = group["params"]
    norm = torch.nn.utils.get_total_norm([value.grad for value in trained if value.grad is not None])
    if not bool(torch.isfinite(norm) & torch.isfinite(objective)):
        parts.optimizer.zero_grad()
        raise NumericsError(
            f"Loss and gradient must be finite, found loss {float(objective)} and gradient norm {float(norm)}. The "
            "optimiser has not moved. Lower train.learning_rate, or look at the batch's data, and go on with "
            "--resume auto from the last checkpoint."
        )
    torch.nn.utils.clip_grads_with_norm_(trained, settings.max_grad_norm, norm)
    group["lr"] = rate
    parts.optimizer.step()
    parts.optimizer.zero_grad()
    return float(norm)


def _global_counts(accelerator: Accelerator, batches: list[Batch]) -> StepCounts:
    own = [
        sum(batch.num_labels for batch in batches),
        sum(batch.num_positions for batch in batches),
        sum(len(batch.data_classes) for batch in batches),
    ]
    if accelerator.num_processes > 1:
        own = accelerator.reduce(torch.tensor(own, device=accelerator.device), reduction="sum").tolist()
    return StepCounts(labels=own[0], positions=own[1], sequences=own[2])


def _new_interval(parts: LoopParts) -> Interval:
    return Interval(parts.accelerator, len(parts.pair.layers), len(parts.pair.term_names))


def _is_measured(settings: TrainConfig, step: int) -> bool:
    if step == settings.max_steps:
        return True
    if settings.evaluate_steps is not None:
        return step % settings.evaluate_steps == 0
    return step in {round(settings.max_steps * quarter / 4) for quarter in (1, 2, 3)}


def _measure_held_out(parts: LoopParts, log: MetricsLog, state: RunState) -> None:
    if parts.held_out is None:
        return
    if parts.accelerator.is_main_process:
        parts.pair.eval()
        summary = parts.held_out().summary()
        parts.pair.train()
        log.write("held_out", {"step": state.step, "tokens": state.tokens, "seconds": state.seconds, **summary})
    parts.accelerator.wait_for_everyone()


def _save(parts: LoopParts, state: RunState) -> Path:
    target = parts.folder / f"checkpoint-{state.step}"
    if parts.accelerator.is_main_process:
        facts = parts.facts(state.step, state.tokens)
        save_checkpoint(parts.folder, parts.pair.trained(), parts.optimizer, state, facts)
        rotate(parts.folder, parts.settings.save_total_limit)
    parts.accelerator.wait_for_everyone()
    return target


def _any_rank(accelerator: Accelerator, flag: bool) -> bool:
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor([float(flag)], device=accelerator.device), reduction="sum").item() > 0)


@contextlib.contextmanager
def _terminate_flag() -> Iterator[list[int]]:
    """Turn SIGTERM into an entry of a list for as long as the loop runs."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
