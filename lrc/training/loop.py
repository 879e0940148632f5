"""The one distillation loop: micro-batches in, an optimiser step out, checkpoints and a log on the way.

Losses are sums over the step's global counts (`StepCounts`), so any split into micro-batches and ranks gives the same
update. The learning rate and the data are functions of the step, so a checkpoint needs only tensors and a few numbers.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch

from lrc.data.blocks import Batch, step_batches
from lrc.errors import DataError
from lrc.models.pair_model import StepCounts
from lrc.training.checkpoint import explained, save_checkpoint
from lrc.training.checkpoint_list import rotate
from lrc.training.divergence import find_divergence, with_step
from lrc.training.loop_parts import LoopParts, Outcome, enter_phase, sum_over_ranks
from lrc.training.metrics import Interval
from lrc.training.preemption import PREEMPTED
from lrc.training.rollback import handle_divergence
from lrc.training.run_state import RunState
from lrc.training.schedule import is_measured, learning_rate
from lrc.training.together import by_first


def run_loop(parts: LoopParts, state: RunState) -> Path:
    """Train from `state` to the last step.

    Returns:
        The last checkpoint.

    Raises:
        DataError: A row can't be used; the steps before it were saved.
        NumericsError: A loss or gradient was not finite or exploded, and the run is not to go on without the batch.
        CheckpointError: A checkpoint or the log can't be written.
        SystemExit: SIGTERM or SIGUSR1 came; the step was finished and saved.
    """
    settings, log = parts.settings, parts.log
    parts.engine.model.train()
    parts.preemption.is_deferred = True
    start = state
    interval = _new_interval(parts)
    resumed_at = time.monotonic() - state.seconds
    state, last = _make_up(parts, state)
    logged_tokens, logged_at = state.tokens, time.monotonic()
    while state.step < settings.max_steps:
        batches, counts = _draw(parts, state, is_saved=state.step == start.step or last.name.endswith(f"-{state.step}"))
        enter_phase(parts, parts.phases.at(state.step, parts.pair.dense), state.step)
        rate = learning_rate(settings, state.step)
        outcome = _optimiser_step(parts, batches, counts, interval, rate, state)
        if outcome.divergence is not None:
            state = handle_divergence(parts, state, outcome, start)
            interval, logged_tokens, logged_at = _new_interval(parts), state.tokens, time.monotonic()
            continue
        interval.close_step(counts)
        state = replace(
            with_step(state, objective=outcome.objective, norm=outcome.norm),
            step=state.step + 1,
            tokens=state.tokens + counts.positions,
            seconds=time.monotonic() - resumed_at,
            held_out_kl=None,
        )
        parts.progress(state.step, settings.max_steps)
        if state.step % settings.log_steps == 0 or state.step == settings.max_steps:
            now = time.monotonic()
            means = interval.means(parts.pair.term_names, parts.pair.points)
            speed = (state.tokens - logged_tokens) / max(1e-9, now - logged_at)
            place = {"step": state.step, "tokens": state.tokens}
            pace = {"gradient_norm": outcome.norm, "learning_rate": rate, "tokens_per_second": speed}
            log.write("train", {**place, **means, **pace, "seconds": state.seconds})
            interval, logged_tokens, logged_at = _new_interval(parts), state.tokens, now
        stops = outcome.stops
        if is_measured(settings, state.step) and not stops:
            began = time.monotonic()
            state = _measure_held_out(parts, state)
            logged_at += time.monotonic() - began
            stops = state.step < settings.max_steps and _is_told_to_stop(parts)
        if stops or state.step % settings.save_steps == 0 or state.step == settings.max_steps:
            last = _save(parts, state)
        if stops:
            raise SystemExit(PREEMPTED)
    return last


def _make_up(parts: LoopParts, state: RunState) -> tuple[RunState, Path]:
    """Do what the last sitting left for this one; returns the state and the checkpoint of its step.

    A signal left no time for a held-out measure that was due: the checkpoint gets it now, for it may be the best one. A
    run that begins at another run's end gets its checkpoint.

    Raises:
        CheckpointError: The checkpoint can't be written.
        SystemExit: SIGTERM or SIGUSR1 came meanwhile.
    """
    settings, target = parts.settings, parts.folder / f"checkpoint-{state.step}"
    is_due = state.step > 0 and state.held_out_kl is None and is_measured(settings, state.step)
    is_due = is_due and parts.held_out is not None
    if is_due:
        state = _measure_held_out(parts, state)
    is_finished = state.step >= settings.max_steps
    if is_due or (is_finished and not target.is_dir()):
        _save(parts, state)
    if is_due and not is_finished and _is_told_to_stop(parts):
        raise SystemExit(PREEMPTED)
    return state, target


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
    labels, positions, sequences, failures = (int(value) for value in sum_over_ranks(parts.accelerator, own))
    if failures:
        if not is_saved:
            _save(parts, state)
        said = failure or "Another process has met a row that can't be used; it says which."
        kept = f" The {state.step} steps before it are saved; then go on with --resume auto." if state.step else ""
        raise DataError(f"{said}{kept}") from failure
    return batches, StepCounts(labels=labels, positions=positions, sequences=sequences)


def _optimiser_step(
    parts: LoopParts, batches: list[Batch], counts: StepCounts, interval: Interval, rate: float, state: RunState
) -> Outcome:
    """Accumulate the step's gradient, judge it, and move."""
    accelerator, settings, engine = parts.accelerator, parts.settings, parts.engine
    objective = torch.zeros((), device=accelerator.device)
    placed = [batch.to(accelerator.device) for batch in batches]  # before a forward pass keeps the device busy
    for position, (batch, there) in enumerate(zip(batches, placed, strict=True)):
        with engine.micro_batch(is_last=position == len(batches) - 1):
            losses = engine.model(there.input_ids, there.labels, there.valid, counts, there.positions)
            engine.backward(losses.objective)
        objective += losses.objective.detach()
        interval.add(losses)
        if settings.log_data_classes:
            interval.add_classes(losses.lm, batch.labels_per_row, batch.data_classes)
    judged: list[Outcome] = []

    def accept(norm: float) -> bool:
        # read here: the device is done with the gradient's norm, and was not waited for before
        total, stops = sum_over_ranks(accelerator, [objective, float(parts.preemption.is_requested)])
        found = find_divergence(settings, state, objective=total, norm=norm)
        judged.append(Outcome(objective=total, norm=norm, divergence=found, has_moved=False, stops=stops > 0))
        return found is None

    norm, has_moved = engine.update(rate, accept)
    return replace(judged[0], norm=norm, has_moved=has_moved)


def _is_told_to_stop(parts: LoopParts) -> bool:
    """Ask all ranks whether a signal came."""
    (requests,) = sum_over_ranks(parts.accelerator, [float(parts.preemption.is_requested)])
    return requests > 0


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
    facts, keep = parts.facts(state.step, state.tokens), parts.settings.save_total_limit
    target = save_checkpoint(parts.folder, parts.engine.tensors(), state, facts, parts.accelerator)
    by_first(parts.accelerator, explained(f"The folder {parts.folder}", lambda: rotate(parts.folder, keep)))
    return target
