"""`lrc train`: everything that can be wrong is checked, then teacher, pair, start values and the loop."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from lrc.config import Recipe
from lrc.data.blocks import Blocks
from lrc.errors import ConfigError
from lrc.evaluation.held_out import AlsoMeasure, HeldOutText
from lrc.method_config import method_objective
from lrc.models.checkpoint import checkpoint_facts, variant_of
from lrc.models.compiled import compile_layers
from lrc.models.compute import choose_device, choose_dtype, dtype_name, keep_freed_memory
from lrc.models.dense import FROM_SCRATCH, Dense, dense_to_facts
from lrc.models.discovery import Architecture, discover
from lrc.models.facts import logit_softcap
from lrc.models.folder import resolve_folder, weights_hash
from lrc.models.isolation import check_isolation
from lrc.models.liger_head import takes_liger
from lrc.models.merge_plan import check_corrected
from lrc.models.oracles import require_family
from lrc.models.pair_model import PairModel
from lrc.models.scratch import check_scratch
from lrc.models.start import StartReport, check_start
from lrc.models.stock import check_plain_or_restored
from lrc.models.student import student_config
from lrc.models.teacher import load_config, load_tokenizer
from lrc.models.terms import measured_terms
from lrc.models.tiny_bert import MAP, check_attention_maps
from lrc.training.checkpoint_list import agreed_resume, checkpoints, find_resume
from lrc.training.launch import (
    check_space,
    check_trackers,
    end_training,
    make_accelerator,
    make_engine,
    start_trackers,
    trackers_need_folder,
)
from lrc.training.loop import run_loop
from lrc.training.loop_parts import LoopParts
from lrc.training.metrics import MetricsLog
from lrc.training.phases import check_rates, check_strategy, plan_phases
from lrc.training.preemption import Preemption, preemption_signals
from lrc.training.resume import check_resume, plan_batches, resume_from
from lrc.training.run_folder import check_run_folder, only_run, prepare_folder
from lrc.training.run_state import RunState
from lrc.training.strategy import choose_strategy
from lrc.training.together import by_first
from lrc.verbs.kept_start import KeptStart
from lrc.verbs.progress import bar_on_terminal, say
from lrc.verbs.sources import locate_teacher
from lrc.verbs.teacher_weights import check_teacher_weights, load_teacher
from lrc.verbs.train_start import calibration_batches, fill, measure_start
from lrc.verbs.training_text import held_out_windows, open_text


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What was checked before the expensive part."""

    folder: Path
    teacher_folder: Path
    teacher_hash: str
    blocks: Blocks
    held_out: list[tuple[Tensor, Tensor]]
    also_measure: AlsoMeasure | None = None
    keep_start: Path | None = None
    hold: Callable[[], None] = lambda: None
    """Called before the folder is written: keeps other runs out of it."""


@dataclass(frozen=True, kw_only=True)
class _Beginning:
    """Where a run begins or goes on."""

    calibration: list[Tensor]
    """Ids of the start, `[batch, seq]` each; none for a random or resumed one."""
    phase: Dense | None
    """What is free by then."""
    resume: Path | None


def train(
    recipe: Recipe,
    *,
    resume: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    also_measure: AlsoMeasure | None = None,
    keep_start: Path | None = None,
) -> Path:
    """Train a student's projections; see the recipe for everything that can be set.

    Args:
        recipe: The run.
        resume: `auto`, or a checkpoint folder to go on from.
        overwrite: Delete an earlier training of this run first.
        dry_run: Check everything, then stop.
        also_measure: Called whenever held-out text is measured; what it returns goes into that line of the log.
        keep_start: File of start values: read if it is there, else written once they are computed.

    Returns:
        The last checkpoint, `RUN/train/checkpoint-N` (in a dry run: where it will lie).

    Raises:
        ConfigError, DataError, CheckpointError: Before anything is written, with what to do.
        NumericsError: A loss was not finite.
        SystemExit: SIGTERM or SIGUSR1 came; what was trained is saved.
    """
    with preemption_signals() as preemption:
        inputs = _check(recipe, resume=resume, overwrite=overwrite)
        if dry_run:
            found = None if resume is None else find_resume(inputs.folder, resume, say)
            _place(recipe, inputs, found, say, is_resumed=resume is not None)
            size, blocks = recipe.student.hidden_size, len(inputs.blocks)
            say(f"dry run: {recipe.teacher} -> hidden size {size}, {blocks} blocks: good")
            return inputs.folder / f"checkpoint-{recipe.train.max_steps}"
        keep_freed_memory()
        inputs = replace(inputs, also_measure=also_measure, keep_start=keep_start)
        with only_run(inputs.folder) as hold:
            return _train(recipe, replace(inputs, hold=hold), preemption, resume=resume, overwrite=overwrite)


def _train(recipe: Recipe, inputs: _Inputs, preemption: Preemption, *, resume: str | None, overwrite: bool) -> Path:
    strategy, phases = choose_strategy(recipe.train, os.environ), plan_phases(recipe)
    check_strategy(recipe, strategy)
    accelerator = make_accelerator(recipe.train, inputs.folder, choose_device(recipe.train.device), strategy=strategy)
    found = None if resume is None else agreed_resume(accelerator, inputs.folder, resume, say)
    place = _place(recipe, inputs, found, _first_says(accelerator), is_resumed=resume is not None)
    plan = plan_batches(recipe, accelerator, place.resume, say)
    teacher, pair = _load_pair(recipe, inputs, accelerator, strategy)
    start = None
    if accelerator.is_main_process:
        start = _begin(recipe, inputs, place, (teacher, pair), accelerator=accelerator, overwrite=overwrite)
    accelerator.wait_for_everyone()
    log = MetricsLog(inputs.folder / "metrics.jsonl", accelerator, total_steps=recipe.train.max_steps)
    held_out = HeldOutText(pair, inputs.held_out, inputs.also_measure) if inputs.held_out else None
    if start is not None:
        measure_start(pair, start, held_out, log, inputs.folder)
    accelerator.wait_for_everyone()
    if place.phase != pair.dense:
        pair.enter(place.phase)
    engine = make_engine(
        accelerator,
        pair,
        recipe.train,
        strategy=strategy,
        accumulation=plan.accumulation,
        dense_rate_share=phases.rate_share,
    )
    state = RunState(step=0, tokens=0, seconds=0.0, sequences_per_step=plan.sequences_per_step)
    if place.resume is not None:
        state = resume_from(place.resume, engine, log, compute_dtype=pair.compute_dtype)
    width, dtype = pair.architecture.hidden_size, dtype_name(pair.compute_dtype)
    lasting = checkpoint_facts(recipe, teacher_hash=inputs.teacher_hash, d_teacher=width, compute_dtype=dtype)
    with bar_on_terminal("train", "steps") as progress:
        parts = LoopParts(
            accelerator=accelerator,
            pair=pair,
            engine=engine,
            blocks=inputs.blocks,
            plan=plan,
            document_masking=recipe.data.document_masking,
            settings=recipe.train,
            phases=phases,
            folder=inputs.folder,
            log=log,
            facts=lambda step, tokens: lasting | {"phase": dense_to_facts(pair.dense), "step": step, "tokens": tokens},
            held_out=None if held_out is None else held_out.measure,
            progress=progress,
            preemption=preemption,
        )
        try:
            last = run_loop(parts, state)
        except SystemExit:  # every rank was told to stop
            end_training(accelerator)
            raise
    end_training(accelerator)
    if accelerator.is_main_process:
        say(f"trained: {last}")
    return last


def _begin(
    recipe: Recipe,
    inputs: _Inputs,
    place: _Beginning,
    models: tuple[nn.Module, PairModel],
    *,
    accelerator: Accelerator,
    overwrite: bool,
) -> StartReport | None:
    """On the first process: do what may refuse, then empty the run's folder, write to it, and return the start."""
    (teacher, pair), folder, goes_on = models, inputs.folder, place.resume is not None
    check_space(folder, pair, recipe.train, dense=plan_phases(recipe).dense, goes_on=goes_on)
    starts_later = trackers_need_folder(recipe.train)
    if not starts_later:
        start_trackers(accelerator, recipe.train)
    start = None
    if not goes_on:
        kept = KeptStart(inputs.keep_start, folder, recipe, inputs.teacher_hash, place.calibration)
        start = kept.fill(pair, lambda: fill(pair, teacher, recipe, place.calibration), reads=not overwrite)
    inputs.hold()
    prepare_folder(folder, recipe, goes_on=goes_on, overwrite=overwrite)
    if start is not None:
        kept.keep(pair, start)
    if starts_later:
        start_trackers(accelerator, recipe.train)
    return start


def _load_pair(recipe: Recipe, inputs: _Inputs, accelerator: Accelerator, strategy: str) -> tuple[nn.Module, PairModel]:
    tell = _first_says(accelerator)
    dtype = by_first(accelerator, lambda: choose_dtype(recipe.train.compute_dtype, accelerator.device))
    teacher = load_teacher(recipe, inputs.teacher_folder, accelerator.device, tell, dtype=dtype, strategy=strategy)
    pair = PairModel(
        teacher,
        hidden_size=recipe.student.hidden_size,
        variant=variant_of(recipe.student),
        objective=method_objective(recipe.method, recipe.objective),
        method=recipe.method,
    )
    if recipe.method != "clone":
        pair.enter(FROM_SCRATCH)
    pair.set_activation_checkpointing(recipe.train.activation_checkpointing)
    pair.has_liger_head = takes_liger(recipe.train.head_kernel, pair.objective, pair.softcap, accelerator.device)
    if recipe.train.compile:
        compile_layers(pair, tell)
    return teacher, pair


def _first_says(accelerator: Accelerator) -> Callable[[str], None]:
    """Return what says a line on the first process and nothing on the others."""
    return say if accelerator.is_main_process else lambda line: None


def _check(recipe: Recipe, *, resume: str | None, overwrite: bool) -> _Inputs:
    """Everything that can be wrong with the inputs, cheapest first."""
    folder = Path(recipe.run) / "train"
    if resume is not None and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite deletes it. Give one of the two.")
    begins = overwrite or not checkpoints(folder)
    if resume is None and not begins:
        raise ConfigError(
            f"{folder} already holds checkpoints. Go on with --resume auto, start anew with --overwrite, or name "
            "another run folder (run=...)."
        )
    if begins:
        check_run_folder(folder, filter(None, (recipe.teacher, recipe.data.train, recipe.data.held_out)))
    device = choose_device(recipe.train.device)
    check_trackers(recipe.train)
    teacher = locate_teacher(recipe.teacher)
    without_weights = resolve_folder(teacher, weights=False)
    config = load_config(teacher, trust_remote_code=recipe.trust_remote_code)
    check_plain_or_restored(config, recipe.teacher)
    architecture = discover(config)
    if recipe.student.hidden_size >= architecture.hidden_size:
        raise ConfigError(
            f"student.hidden_size must be below the teacher's {architecture.hidden_size}, found "
            f"{recipe.student.hidden_size}. Choose a smaller one."
        )
    student_config(config, recipe.student.hidden_size, tied=False)
    _check_method(recipe, config, architecture)
    takes_liger(
        recipe.train.head_kernel, method_objective(recipe.method, recipe.objective), logit_softcap(config), device
    )
    tokenizer, words = load_tokenizer(without_weights, trust_remote_code=recipe.trust_remote_code), config.vocab_size
    blocks = open_text(recipe.data.train, tokenizer, sequence_length=recipe.data.sequence_length, vocab_size=words)
    held_out = held_out_windows(recipe.data, tokenizer, vocab_size=words)
    teacher_folder = resolve_folder(teacher)  # now that all else is right: weights from the hub may take hours
    return _Inputs(
        folder=folder,
        teacher_folder=teacher_folder,
        teacher_hash=weights_hash(teacher_folder),
        blocks=blocks,
        held_out=held_out,
    )


def _place(
    recipe: Recipe, inputs: _Inputs, found: Path | None, tell: Callable[[str], None], *, is_resumed: bool
) -> _Beginning:
    """Check that a checkpoint, which `find_resume` found whole, fits the run; without one choose the start's text."""
    if found is None:
        if is_resumed:
            tell(f"no checkpoint in {inputs.folder} to go on from: the run begins at step 0")
        calibration = calibration_batches(recipe, inputs.blocks)
        return _Beginning(calibration=calibration, phase=plan_phases(recipe).at(0, None), resume=None)
    folder = inputs.folder
    phase = check_resume(found, recipe, inputs.teacher_hash, tell)
    if found.resolve().parent != folder.resolve() and checkpoints(folder):
        raise ConfigError(
            f"{folder} already holds checkpoints of its own, so it can't go on from {found}. Name another run folder."
        )
    return _Beginning(calibration=[], phase=phase, resume=found)


def _check_method(recipe: Recipe, config: Any, architecture: Architecture) -> None:
    """Check that this architecture can be cloned and has what the method compares and trains."""
    require_family(config)
    check_teacher_weights(recipe, config, architecture)
    if recipe.data.document_masking:
        check_isolation(config)
    variant, objective = variant_of(recipe.student), method_objective(recipe.method, recipe.objective)
    measured_terms(architecture, variant, objective, recipe.method)
    check_rates(recipe, architecture)
    check_corrected(architecture, variant)
    check_start(config, recipe.start, method=recipe.method)
    if recipe.method != "clone":
        tied = architecture.is_student_tied(variant)
        check_scratch(config, architecture, recipe.student.hidden_size, tied=tied)
    if recipe.method == "tiny_bert" and not {"all", MAP} & set(objective.without):
        check_attention_maps(config, architecture)
