"""What becomes of a step that the divergence guard has refused: the run ends, or goes back and leaves the batch out."""

from dataclasses import replace

from lrc.errors import NumericsError
from lrc.models.checkpoint import read_facts
from lrc.models.dense import dense_of_facts
from lrc.training.checkpoint import Saved, explained, read_checkpoint
from lrc.training.checkpoint_list import agreed_resume
from lrc.training.divergence import MAX_ROLLBACKS, record_divergence, sources_of, with_skipped
from lrc.training.loop_parts import LoopParts, Outcome, enter_phase
from lrc.training.run_state import RunState
from lrc.training.together import by_first


def handle_divergence(parts: LoopParts, state: RunState, outcome: Outcome, start: RunState) -> RunState:
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
        saved = last_checkpoint(parts)
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
        what = f"The log {parts.log.path}"
        by_first(parts.accelerator, explained(what, lambda: parts.log.rewind(back.step)))
    for number in sorted(skipped):
        back = with_skipped(back, number)
    return replace(back, seconds=state.seconds)


def last_checkpoint(parts: LoopParts) -> Saved | None:
    """Open the newest checkpoint that is whole, the same on every rank; None if there is none.

    Raises:
        CheckpointError: On every rank, if there are checkpoints and none is whole.
    """
    found = agreed_resume(parts.accelerator, parts.folder, "auto", parts.log.say)
    if found is None:
        return None
    enter_phase(parts, dense_of_facts(read_facts(found) or {}))  # it may lie before the phase that the run is in
    return read_checkpoint(found, parts.engine.shapes, parts.engine.moment_shapes)
