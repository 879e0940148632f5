"""Going on from a checkpoint: the same sequences in each step on any number of ranks, log and folder set back."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from lrc.config import Recipe, StudentConfig, recipe_to_dict
from lrc.data.blocks import BatchPlan
from lrc.errors import CheckpointError, ConfigError
from lrc.models.checkpoint import read_facts
from lrc.models.compute import dtype_name
from lrc.models.dense import Dense, dense_of_facts
from lrc.training.checkpoint import clear_drafts, read_checkpoint, read_state, write_failure
from lrc.training.checkpoint_list import discard_after
from lrc.training.engine import Engine
from lrc.training.metrics import MetricsLog
from lrc.training.phases import check_phase, plan_phases
from lrc.training.run_state import RunState

ORDERING = (("data", "train"), ("data", "sequence_length"), ("train", "seed"))
"""What the order of the data follows from, beside the sequences of a step."""


def plan_batches(
    recipe: Recipe, accelerator: Accelerator, resume: Path | None, note: Callable[[str], None]
) -> BatchPlan:
    """Share a step's sequences out over ranks and micro-batches, and say how many tokens the run takes.

    A resumed run keeps the number of sequences in a step, and with it the order of the data: on another number of ranks
    the number of micro-batches changes.

    Args:
        recipe: The run.
        accelerator: Knows the ranks.
        resume: The checkpoint to go on from.
        note: Takes lines: on the run's tokens, and if the recipe's number of micro-batches is not the one used.

    Raises:
        ConfigError: The ranks can't share a step evenly.
    """
    settings, ranks = recipe.train, accelerator.num_processes
    accumulation = settings.gradient_accumulation_steps
    if resume is not None:
        wanted = read_state(resume).sequences_per_step
        accumulation, rest = divmod(wanted, settings.batch_size * ranks)
        if rest or not accumulation:
            raise ConfigError(
                f"{resume} was trained with {wanted} sequences a step, which must stay, but {ranks} processes with "
                f"train.batch_size = {settings.batch_size} can't share them evenly. Choose a batch size and a number "
                f"of processes whose product divides {wanted}."
            )
        if accumulation != settings.gradient_accumulation_steps and accelerator.is_main_process:
            note(f"{wanted} sequences a step, as before: train.gradient_accumulation_steps is {accumulation} here")
    plan = BatchPlan(
        seed=settings.seed,
        batch_size=settings.batch_size,
        accumulation=accumulation,
        num_ranks=ranks,
        rank=accelerator.process_index,
    )
    if accelerator.is_main_process:
        length = recipe.data.sequence_length
        tokens = settings.max_steps * plan.sequences_per_step * length
        processes = f" on {ranks} processes" if ranks > 1 else ""
        note(f"{settings.max_steps} steps of {plan.sequences_per_step} x {length} tokens{processes}: {tokens:,} tokens")
    return plan


def check_resume(checkpoint: Path, recipe: Recipe, teacher_hash: str, note: Callable[[str], None]) -> Dense | None:
    """Check that a checkpoint fits the run.

    Args:
        checkpoint: The one to go on from.
        recipe: The run.
        teacher_hash: Its teacher's.
        note: Takes a line on each setting that gives the data another order from here on.

    Returns:
        What is free in it.

    Raises:
        CheckpointError: It has no facts, or another teacher's.
        ConfigError: It holds another student, or a phase that the run has not.
    """
    facts = read_facts(checkpoint)
    if facts is None:
        raise CheckpointError(f"{checkpoint} has no lrc_config.json, so it can't be resumed.")
    if facts["teacher_hash"] != teacher_hash:
        raise CheckpointError(
            f"{checkpoint} was trained with the teacher {facts['teacher']}, not with {recipe.teacher}. Name that one."
        )
    now = recipe_to_dict(recipe)
    if StudentConfig(**facts["student"]) != recipe.student:  # an older checkpoint lacks later keys
        raise ConfigError(
            f"{checkpoint} holds another student, {facts['student']}, than the recipe asks for, {now['student']}."
        )
    for section, key in ORDERING:
        before, value = facts["recipe"].get(section, {}).get(key), now[section][key]
        if before not in (None, value):
            note(f"note: {section}.{key} was {before} and is {value}: from here on the data may come in another order")
    phase = dense_of_facts(facts)
    check_phase(phase, plan_phases(recipe), facts["step"], origin=str(checkpoint))
    return phase


def resume_from(checkpoint: Path, engine: Engine, log: MetricsLog, *, compute_dtype: torch.dtype) -> RunState:
    """Go back to a checkpoint; what the run wrote after it is dropped, for it will be written anew.

    Another compute dtype than before is told: `auto` follows the machine.

    Raises:
        CheckpointError: The checkpoint is damaged or another student's, or the run folder can't be written.
    """
    saved = read_checkpoint(checkpoint, engine.shapes, engine.moment_shapes)
    engine.load(saved)
    log.accelerator.wait_for_everyone()  # the checkpoint may get its name back, which no rank may be reading then
    if log.accelerator.is_main_process:
        folder = log.path.parent
        try:
            log.rewind(saved.state.step, is_measured=saved.state.held_out_kl is not None)
            clear_drafts(folder)
            discard_after(folder, saved.state.step)
        except OSError as error:
            raise CheckpointError(write_failure(f"The folder {folder}", error)) from error
        log.say(f"resumed from {checkpoint} at step {saved.state.step}")
        before, dtype = (read_facts(checkpoint) or {}).get("compute_dtype"), dtype_name(compute_dtype)
        if before not in (None, dtype):
            log.say(
                f"note: computed in {before} before and in {dtype} from here on; train.compute_dtype={before} keeps it"
            )
    log.accelerator.wait_for_everyone()
    return saved.state
