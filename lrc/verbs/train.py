"""`lrc train`: everything that can be wrong is checked, then teacher, pair, start values and the loop."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from lrc.config import Recipe, recipe_to_dict
from lrc.data.blocks import Blocks, open_blocks, ordered_batches
from lrc.errors import CheckpointError, ConfigError, DataError
from lrc.evaluation.agreement import measure_pair
from lrc.evaluation.effective_rank import pair_stream_ranks
from lrc.models.checkpoint import checkpoint_facts, read_facts, variant_of, versions
from lrc.models.compute import choose_device
from lrc.models.discovery import discover
from lrc.models.folder import resolve_folder, weights_hash
from lrc.models.isolation import check_isolation
from lrc.models.oracles import require_family
from lrc.models.pair_model import PairModel, measured_terms
from lrc.models.start import StartReport, fill_start
from lrc.models.student import student_config
from lrc.models.teacher import load_config, load_tokenizer
from lrc.training.beside import write_beside
from lrc.training.checkpoint import write_failure
from lrc.training.checkpoint_list import checkpoints, find_resume
from lrc.training.launch import (
    check_space,
    check_trackers,
    end_training,
    make_accelerator,
    make_engine,
    start_trackers,
    write_recipe,
)
from lrc.training.loop import LoopParts, run_loop
from lrc.training.metrics import MetricsLog
from lrc.training.preemption import Preemption, preemption_signals
from lrc.training.resume import plan_batches, resume_from
from lrc.training.run_state import RunState
from lrc.training.strategy import choose_strategy
from lrc.verbs.progress import bar_on_terminal, progress_lines, say
from lrc.verbs.sources import locate_data, locate_teacher
from lrc.verbs.teacher_weights import check_teacher_weights, load_teacher

CALIBRATION_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What was checked before the expensive part."""

    folder: Path
    teacher_folder: Path
    teacher_hash: str
    blocks: Blocks
    held_out: list[tuple[Tensor, Tensor]]
    calibration: list[Tensor]
    """Ids of the start, `[batch, seq]` each; none for a random or resumed one."""
    resume: Path | None


def train(recipe: Recipe, *, resume: str | None = None, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Train a student's projections; see the recipe for everything that can be set.

    Args:
        recipe: The run.
        resume: `auto`, or a checkpoint folder to go on from.
        overwrite: Delete an earlier training of this run first.
        dry_run: Check everything, then stop.

    Returns:
        The last checkpoint, `RUN/train/checkpoint-N` (in a dry run: where it will lie).

    Raises:
        ConfigError, DataError, CheckpointError: Before anything is written, with what to do.
        NumericsError: A loss was not finite.
    """
    inputs = _check(recipe, resume=resume, overwrite=overwrite)
    if dry_run:
        size, blocks = recipe.student.hidden_size, len(inputs.blocks)
        say(f"dry run: {recipe.teacher} -> hidden size {size}, {blocks} blocks: good")
        return inputs.folder / f"checkpoint-{recipe.train.max_steps}"
    with preemption_signals() as preemption:
        return _train(recipe, inputs, preemption, overwrite=overwrite)


def _train(recipe: Recipe, inputs: _Inputs, preemption: Preemption, *, overwrite: bool) -> Path:
    strategy = choose_strategy(recipe.train, os.environ)
    accelerator = make_accelerator(recipe.train, inputs.folder, choose_device(recipe.train.device), strategy=strategy)
    plan = plan_batches(recipe.train, accelerator, inputs.resume, say)
    teacher, pair = _load_pair(recipe, inputs, accelerator)
    if accelerator.is_main_process:
        _prepare_folder(inputs, recipe, overwrite=overwrite)
        check_space(inputs.folder, pair, keep=recipe.train.save_total_limit)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, recipe.train)
    log = MetricsLog(inputs.folder / "metrics.jsonl", accelerator, total_steps=recipe.train.max_steps)
    if inputs.resume is None and accelerator.is_main_process:
        _start(pair, teacher, recipe, inputs, log)
    accelerator.wait_for_everyone()
    engine = make_engine(accelerator, pair, recipe.train, strategy=strategy, accumulation=plan.accumulation)
    state = RunState(step=0, tokens=0, seconds=0.0, sequences_per_step=plan.sequences_per_step)
    if inputs.resume is not None:
        state = resume_from(inputs.resume, engine, log)

    width = pair.architecture.hidden_size
    lasting = checkpoint_facts(recipe, teacher_hash=inputs.teacher_hash, d_teacher=width, step=0, tokens=0)

    with bar_on_terminal("train", "steps") as progress:
        parts = LoopParts(
            accelerator=accelerator,
            pair=pair,
            engine=engine,
            blocks=inputs.blocks,
            plan=plan,
            document_masking=recipe.data.document_masking,
            settings=recipe.train,
            folder=inputs.folder,
            log=log,
            facts=lambda step, tokens: {**lasting, "step": step, "tokens": tokens},
            held_out=(lambda: measure_pair(pair, inputs.held_out)) if inputs.held_out else None,
            progress=progress,
            preemption=preemption,
        )
        last = run_loop(parts, state)
    end_training(accelerator)
    if accelerator.is_main_process:
        say(f"trained: {last}")
    return last


def _load_pair(recipe: Recipe, inputs: _Inputs, accelerator: Accelerator) -> tuple[nn.Module, PairModel]:
    tell = say if accelerator.is_main_process else lambda line: None
    teacher = load_teacher(recipe, inputs.teacher_folder, accelerator.device, tell)
    pair = PairModel(
        teacher,
        hidden_size=recipe.student.hidden_size,
        variant=variant_of(recipe.student),
        objective=recipe.objective,
    )
    pair.set_activation_checkpointing(recipe.train.activation_checkpointing)
    return teacher, pair


def _check(recipe: Recipe, *, resume: str | None, overwrite: bool) -> _Inputs:
    """Everything that can be wrong with the inputs, cheapest first."""
    folder = Path(recipe.run) / "train"
    if resume is not None and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite deletes it. Give one of the two.")
    if resume is None and checkpoints(folder) and not overwrite:
        raise ConfigError(
            f"{folder} already holds checkpoints. Go on with --resume auto, start anew with --overwrite, or name "
            "another run folder (run=...)."
        )
    choose_device(recipe.train.device)
    check_trackers(recipe.train)
    teacher_folder = resolve_folder(locate_teacher(recipe.teacher))
    config = load_config(str(teacher_folder), trust_remote_code=recipe.trust_remote_code)
    architecture = discover(config)
    if recipe.student.hidden_size >= architecture.hidden_size:
        raise ConfigError(
            f"student.hidden_size must be below the teacher's {architecture.hidden_size}, found "
            f"{recipe.student.hidden_size}. Choose a smaller one."
        )
    student_config(config, recipe.student.hidden_size, tied=False)
    require_family(config)
    check_teacher_weights(recipe, config, architecture)
    if recipe.data.document_masking:
        check_isolation(config)
    measured_terms(architecture, variant_of(recipe.student), recipe.objective)
    tokenizer = load_tokenizer(teacher_folder)
    blocks = open_blocks(
        locate_data(recipe.data.train),
        tokenizer,
        sequence_length=recipe.data.sequence_length,
        vocab_size=config.vocab_size,
    )
    held_out = []
    if recipe.data.held_out is not None:
        length, words = recipe.data.sequence_length, config.vocab_size
        source = open_blocks(locate_data(recipe.data.held_out), tokenizer, sequence_length=length, vocab_size=words)
        batches = ordered_batches(source, tokens=recipe.data.held_out_tokens, batch_size=1)
        held_out = [(batch.input_ids, batch.labels) for batch in batches]
    teacher_hash = weights_hash(teacher_folder)
    found = find_resume(folder, resume, say) if resume is not None else None
    if found is not None:
        _check_resume(found, recipe, teacher_hash)
        if found.resolve().parent != folder.resolve() and checkpoints(folder):
            raise ConfigError(
                f"{folder} already holds checkpoints of its own, so it can't go on from {found}. Name another run "
                "folder."
            )
    return _Inputs(
        folder=folder,
        teacher_folder=teacher_folder,
        teacher_hash=teacher_hash,
        blocks=blocks,
        held_out=held_out,
        calibration=[] if found is not None else _calibration_batches(recipe, blocks),
        resume=found,
    )


def _check_resume(checkpoint: Path, recipe: Recipe, teacher_hash: str) -> None:
    facts = read_facts(checkpoint)
    if facts is None:
        raise CheckpointError(f"{checkpoint} has no lrc_config.json, so it can't be resumed.")
    if facts["teacher_hash"] != teacher_hash:
        raise CheckpointError(
            f"{checkpoint} was trained with the teacher {facts['teacher']}, not with {recipe.teacher}. Name that one."
        )
    if facts["student"] != recipe_to_dict(recipe)["student"]:
        raise ConfigError(
            f"{checkpoint} holds another student, {facts['student']}, than the recipe asks for, "
            f"{recipe_to_dict(recipe)['student']}."
        )


def _prepare_folder(inputs: _Inputs, recipe: Recipe, *, overwrite: bool) -> None:
    try:
        if inputs.resume is None and inputs.folder.exists():
            assert overwrite or not checkpoints(inputs.folder)
            shutil.rmtree(inputs.folder)
        inputs.folder.mkdir(parents=True, exist_ok=True)
        write_recipe(inputs.folder / "recipe.yaml", recipe)
    except OSError as error:
        raise CheckpointError(f"The run folder {inputs.folder} can't be written: {error}.") from error


def _start(pair: PairModel, teacher: nn.Module, recipe: Recipe, inputs: _Inputs, log: MetricsLog) -> None:
    """Fill the start values, measure them, and write `start.json`."""
    with ExitStack() as bars:
        shown: dict[str, Callable[[int, int], None]] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                unit = "layers" if stage == "calibrate" else "batches"
                shown[stage] = bars.enter_context(progress_lines(f"start: {stage}", unit))
            shown[stage](done, total)

        seed = recipe.train.seed
        report = fill_start(pair, teacher, recipe.start, inputs.calibration, seed=seed, progress=progress)
    for line in report.kept:
        say(f"start: not calibrated, kept at its pca start: {line}")
    held_out, ranks = None, None
    if inputs.held_out:
        pair.eval()
        with pair_stream_ranks(pair) as ranks:
            agreement = measure_pair(pair, inputs.held_out)
        pair.train()
        held_out = agreement.summary()
        log.write("held_out", {"step": 0, "tokens": 0, "seconds": 0.0, **held_out})
        say(f"effective rank of the student's stream: {min(ranks):.0f} to {max(ranks):.0f} over the layers")
    _write_start(inputs.folder / "start.json", report, held_out, ranks)


def _write_start(
    path: Path, report: StartReport, held_out: dict[str, float | int] | None, ranks: list[float] | None
) -> None:
    facts = {
        "method": report.method,
        "calibration_tokens": report.tokens,
        "seconds": report.seconds,
        "layer_errors": report.layer_errors,
        "kept_at_pca": report.kept,
        "held_out": held_out,
        "effective_rank": ranks,
        "versions": versions(),
    }
    try:
        write_beside(path, json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(write_failure(str(path), error)) from error


def _calibration_batches(recipe: Recipe, blocks: Blocks) -> list[Tensor]:
    """Full blocks from the front of the training data, in equal batches."""
    if recipe.start.method == "random":
        return []
    length = recipe.data.sequence_length
    if recipe.start.tokens < CALIBRATION_BATCH * length:
        raise DataError(
            f"start.tokens must be at least {CALIBRATION_BATCH} rows of data.sequence_length = {length}, found "
            f"{recipe.start.tokens}. Raise it or lower data.sequence_length."
        )
    batches = ordered_batches(blocks, tokens=recipe.start.tokens, batch_size=CALIBRATION_BATCH)
    full = [batch.input_ids for batch in batches if batch.num_positions == CALIBRATION_BATCH * length]
    if not full:
        raise DataError(
            f"The {recipe.start.method} start needs {CALIBRATION_BATCH} rows of data.sequence_length = {length} tokens "
            f"side by side, but {recipe.data.train} has none. Pack the data or lower data.sequence_length."
        )
    return full
