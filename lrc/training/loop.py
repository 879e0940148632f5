"""The one distillation loop: micro-batches in, an optimiser step out, checkpoints and a log on the way.

Losses are sums over the step's global counts (`StepCounts`), so any split into micro-batches and ranks gives the same
update. The learning rate and the data are functions of the step, so a checkpoint needs only tensors and a few numbers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from lrc.config import TrainConfig
from lrc.data.blocks import Batch, BatchPlan, Blocks, step_batches
from lrc.errors import CheckpointError, DataError, NumericsError
from lrc.models.checkpoint import read_facts
from lrc.models.dense import Dense, dense_of_facts
from lrc.models.pair_model import PairModel, StepCounts
from lrc.training.checkpoint import Saved, read_checkpoint, save_checkpoint, write_failure
from lrc.training.checkpoint_list import find_resume, rotate
from lrc.training.divergence import (
    MAX_ROLLBACKS,
    find_divergence,
    record_divergence,
    sources_of,
    with_norm,
    with_skipped,
)
from lrc.training.engine import Engine
from lrc.training.metrics import Interval, MetricsLog
from lrc.training.phases import Phases
from lrc.training.preemption import PREEMPTED, Preemption
from lrc.training.run_state import RunState
from lrc.training.schedule import is_measured, learning_rate


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
class _Outcome:
    """One step; the same on every rank."""

    objective: float
    norm: float
    """Of the gradient, before clipping."""
    divergence: str | None
    """Why the step was refused."""
    has_moved: bool
    stops: bool
    """A rank was told to stop."""


def run_loop(parts: LoopParts, state: RunState) -> Path:
    """Train from `state` to the last step.

    Returns:
        The last checkpoint.

    Raises:
        NumericsError: A loss or gradient was not finite or exploded, and the run is not to go on without the batch.
        DataError: A row can't be used; the steps before it were saved.
        CheckpointError: A checkpoint or the log can't be written.
        SystemExit: SIGTERM or SIGUSR1 came; the step was finished and saved.
    """
    settings, log = parts.settings, parts.log
    parts.engine.model.train()
    parts.preemption.is_deferred = True
    start = state
    interval = _new_interval(parts)
    resumed_at, logged_tokens, logged_at = time.monotonic() - state.seconds, state.tokens, time.monotonic()
    last = parts.folder / f"checkpoint-{state.step}"
    # a signal left no time for the measure; the checkpoint gets it now, for it may be the best one
    is_due = state.step > 0 and state.held_out_kl is None and is_measured(settings, state.step)
    is_due = is_due and parts.held_out is not None
    if is_due:
        state = _measure_held_out(parts, state)
    if is_due or (state.step >= settings.max_steps and not last.is_dir()):  # resumed from another run's end
        last = _save(parts, state)
    while state.step < settings.max_steps:
        _enter(parts, parts.phases.at(state.step, parts.pair.dense), state.step)
        batches, counts = _draw(parts, state, is_saved=state.step == start.step or last.name.endswith(f"-{state.step}"))
        rate = learning_rate(settings, state.step)
        outcome = _optimiser_step(parts, batches, counts, interval, rate, state)
        if outcome.divergence is not None:
            state = _handle_divergence(parts, state, outcome, start)
            interval, logged_tokens, logged_at = _new_interval(parts), state.tokens, time.monotonic()
            continue
        interval.close_step(counts)
        state = replace(
            with_norm(state, outcome.norm),
            step=state.step + 1,
            tokens=state.tokens + counts.positions,
            seconds=time.monotonic() - resumed_at,
            held_out_kl=None,
        )
        parts.progress(state.step, settings.max_steps)
        if state.step % settings.log_steps == 0 or state.step == settings.max_steps:
            now = time.monotonic()
            means = interval.means(parts.pair.term_names)
            speed = (state.tokens - logged_tokens) / max(1e-9, now - logged_at)
            place = {"step": state.step, "tokens": state.tokens}
            pace = {"gradient_norm": outcome.norm, "learning_rate": rate, "tokens_per_second": speed}
            log.write("train", {**place, **means, **pace, "seconds": state.seconds})
            interval, logged_tokens, logged_at = _new_interval(parts), state.tokens, now
        if is_measured(settings, state.step) and not outcome.stops:
            state = _measure_held_out(parts, state)
            logged_at = time.monotonic()
        if outcome.stops or state.step % settings.save_steps == 0 or state.step == settings.max_steps:
            last = _save(parts, state)
        if outcome.stops:
            raise SystemExit(PREEMPTED)
    return last


def _draw(parts: LoopParts, state: RunState, *, is_saved: bool) -> tuple[list[Batch], StepCounts]:
    """Read this rank's micro-batches of a step, and count over all ranks.

    Raises:
        DataError: On every rank, if one has met a row that can't be used; `state` is saved first, unless it is.
    """
    batches: list[Batch] = []
    failure: DataError | None = None
    try:
        batches = step_batches(parts.blocks, parts.plan, state.next_batch, document_masking=parts.document_masking)
    except DataError as error:
        failure = error
    own = [
        sum(batch.num_labels for batch in batches),
        sum(batch.num_positions for batch in batches),
        sum(len(batch.data_classes) for batch in batches),
        float(failure is not None),
    ]
    labels, positions, sequences, failures = (int(value) for value in _sums(parts.accelerator, own))
    if failures:
        if not is_saved:
            _save(parts, state)
        said = failure or "Another process has met a row that can't be used; it says which."
        kept = f" The {state.step} steps before it are saved; then go on with --resume auto." if state.step else ""
        raise DataError(f"{said}{kept}") from failure
    return batches, StepCounts(labels=labels, positions=positions, sequences=sequences)


def _optimiser_step(
    parts: LoopParts, batches: list[Batch], counts: StepCounts, interval: Interval, rate: float, state: RunState
) -> _Outcome:
    """Accumulate the step's gradient, judge it, and move."""
    accelerator, settings, engine = parts.accelerator, parts.settings, parts.engine
    objective = torch.zeros((), device=accelerator.device)
    for position, batch in enumerate(batches):
        with engine.micro_batch(is_last=position == len(batches) - 1):
            losses = engine.model(
                batch.input_ids.to(accelerator.device),
                batch.labels.to(accelerator.device),
                batch.valid.to(accelerator.device),
                counts,
                None if batch.positions is None else batch.positions.to(accelerator.device),
            )
            engine.backward(losses.objective)
        objective += losses.objective.detach()
        interval.add(losses)
        if settings.log_data_classes:
            interval.add_classes(losses.lm, batch.labels_per_row, batch.data_classes)
    total, stops = _sums(accelerator, [objective, float(parts.preemption.is_requested)])
    found: list[str | None] = []

    def accept(norm: float) -> bool:
        found.append(find_divergence(settings, state, objective=total, norm=norm))
        return found[0] is None

    norm, has_moved = engine.update(rate, accept)
    return _Outcome(objective=total, norm=norm, divergence=found[0], has_moved=has_moved, stops=stops > 0)


def _handle_divergence(parts: LoopParts, state: RunState, outcome: _Outcome, start: RunState) -> RunState:
    """Record a refused step, then end the run or go back to the last checkpoint, from there on without the batch.

    Without a checkpoint the batch is skipped where the run stands, for nothing has moved, and `start`, where this
    sitting began, is what too many batches are counted from.

    Raises:
        NumericsError: The run is to end: as it was asked to, or because going back has not helped.
    """
    batch = state.next_batch
    sources = list(sources_of(parts.blocks, parts.plan, batch))
    saved, back = None, state
    if parts.settings.on_divergence == "rollback":
        saved = _last_checkpoint(parts)
        back = state if saved is None else saved.state
    skipped = {*state.skipped_batches, batch}
    known = start if saved is None else saved.state
    gives_up = len(skipped - set(known.skipped_batches)) > MAX_ROLLBACKS or (saved is None and outcome.has_moved)
    stops = parts.settings.on_divergence == "stop" or gives_up
    if parts.accelerator.is_main_process:
        values = {"step": state.step, "batch": batch, "objective": outcome.objective, "gradient_norm": outcome.norm}
        action = "stop" if stops else f"rollback to step {back.step}"
        record_divergence(
            parts.folder, {**values, "reason": outcome.divergence, "action": action, "sequences": sources}
        )
        parts.log.say(f"step {state.step}: {outcome.divergence}; {action}, batch {batch}: {sources[0]}, ...")
    if stops:
        raise NumericsError(
            f"In step {state.step}: {outcome.divergence}. No checkpoint holds the step. Its sequences are listed in "
            f"{parts.folder / 'divergence.jsonl'}, the first is {sources[0]}. Lower train.learning_rate, look at the "
            "data, or set train.on_divergence=rollback, and go on with --resume auto from the last checkpoint."
        )
    if saved is not None:
        parts.engine.load(saved)
        parts.log.rewind(back.step)
    for number in sorted(skipped):
        back = with_skipped(back, number)
    return replace(back, seconds=state.seconds)


def _last_checkpoint(parts: LoopParts) -> Saved | None:
    """Read the newest checkpoint that is whole, the one that the first process finds; None if there is none.

    Raises:
        CheckpointError: On every rank, if there are checkpoints and none is whole.
    """
    chosen: list[Path | str | None] = [None]
    if parts.accelerator.is_main_process:
        try:
            chosen = [find_resume(parts.folder, "auto", parts.log.say)]
        except CheckpointError as error:
            chosen = [str(error)]
    broadcast_object_list(chosen)
    (found,) = chosen
    if isinstance(found, str):
        raise CheckpointError(found)
    if found is None:
        return None
    _enter(parts, dense_of_facts(read_facts(found) or {}))  # it may lie before the phase that the run is in
    return read_checkpoint(found, parts.engine.shapes, parts.engine.moment_shapes)


def _enter(parts: LoopParts, dense: Dense | None, step: int | None = None) -> None:
    """Go over to a phase if the run is in another one; a `step` is told."""
    if dense == parts.pair.dense:
        return
    parts.engine.enter(dense)
    if step is not None and dense is not None and parts.accelerator.is_main_process:
        free = sum(value.numel() for name, value in parts.pair.trained().items() if name.startswith("dense."))
        parts.log.say(f"step {step}: the dense phase begins, {free:,} free weights ({dense.tensors}, {dense.form})")


def _sums(accelerator: Accelerator, values: list[Any]) -> list[float]:
    """Add numbers up over ranks."""
    if accelerator.num_processes == 1:
        return [float(value) for value in values]
    row = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=accelerator.device) for value in values])
    return [float(value) for value in accelerator.reduce(row, reduction="sum")]


def _new_interval(parts: LoopParts) -> Interval:
    return Interval(parts.accelerator, len(parts.pair.layers), len(parts.pair.term_names))


def _measure_held_out(parts: LoopParts, state: RunState) -> RunState:
    """Measure and log; the first process alone, or all of them where each forward pass needs them."""
    if parts.held_out is None:
        return state
    if parts.accelerator.is_main_process or parts.engine.is_sharded:
        parts.pair.eval()
        summary = parts.held_out(state.step)
        parts.pair.train()
        place = {"step": state.step, "tokens": state.tokens, "seconds": state.seconds}
        parts.log.write("held_out", {**place, **summary})
        state = replace(state, held_out_kl=summary["kl"])
    parts.accelerator.wait_for_everyone()
    return state


def _save(parts: LoopParts, state: RunState) -> Path:
    target = parts.folder / f"checkpoint-{state.step}"
    weights, moments = parts.engine.tensors()
    failure: CheckpointError | None = None
    if parts.accelerator.is_main_process:
        try:
            saved = Saved(weights=weights, moments=moments, state=state)
            save_checkpoint(parts.folder, saved, parts.facts(state.step, state.tokens))
            rotate(parts.folder, parts.settings.save_total_limit)
        except CheckpointError as error:
            failure = error
        except OSError as error:
            failure = CheckpointError(write_failure(f"The folder {parts.folder}", error))
    # also the barrier: no rank goes on before the checkpoint stands, and none waits for one that never will
    (failures,) = _sums(parts.accelerator, [float(failure is not None)])
    if failures:
        raise failure or CheckpointError(f"The first process can't write the checkpoint {target}; it says why.")
    return target
