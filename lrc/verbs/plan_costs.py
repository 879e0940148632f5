"""Plan costs: from a recipe or a teacher's config to the printed plan and its JSON."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console

from lrc.config import CHECKPOINTING, Checkpointing, Recipe, load_recipe, recipe_from_dict
from lrc.errors import ConfigError
from lrc.export.size_advice import size_advice
from lrc.method_config import first_dense_step
from lrc.models.checkpoint import variant_of
from lrc.models.dense import Dense
from lrc.models.discovery import Architecture, discover
from lrc.models.oracles import require_family
from lrc.models.teacher import load_config
from lrc.models.terms import measured_terms
from lrc.overrides import read_overrides
from lrc.plan.devices import Machine, parse_machine, usual_machines
from lrc.plan.inverse import allowed_sizes, hidden_size_for, largest_size, parse_count
from lrc.plan.run_costs import PUBLISHED_MFU, RunShape
from lrc.plan.sizes import Sizes, measure_sizes
from lrc.plan.strategies import STRATEGIES, Strategy, strategies_for
from lrc.plan.whole import Planner, plan_to_dict, problem_text
from lrc.training.launch import num_kept
from lrc.training.phases import check_strategy
from lrc.training.strategy import choose_strategy
from lrc.verbs.plan import plan as describe
from lrc.verbs.plan_tables import answer_lines, print_plan, verdict, way_in_words
from lrc.verbs.sources import locate_teacher
from lrc.verbs.teacher_weights import check_teacher_weights

WIDTH = 132
"""Columns of the tables where the terminal does not say."""
USUAL_MACHINE = "8xh100"
PLAN_KEYS = {"trained_parameters", "memory_per_device", "machines"}
"""What the JSON of every plan holds."""
WHY = {
    "--fits": "--fits names the machine itself, such as 24GB or 8xh100, and looks for the hidden size.",
    "--params": "--params looks for the hidden size.",
}
"""What a flag does that another one would undo."""
PLANNED_TOKENS = 10e9
"""Training tokens of a teacher planned without a recipe, as published for LRC-1.5B."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked beside the recipe; see `lrc plan --help`."""

    hidden_size: int | None = None
    on: str | None = None
    params: str | None = None
    fits: str | None = None
    tokens: str | None = None
    mfu: float | None = None
    out: Path | None = None

    @property
    def machine(self) -> str:
        """The machine to plan for."""
        return self.fits or self.on or USUAL_MACHINE


def plan_costs(source: str, overrides: tuple[str, ...], question: Question, *, trust_remote_code: bool = False) -> None:
    """Print what a run costs.

    Args:
        source: Recipe file, or a teacher's folder or hub id.
        overrides: `section.key=value` changes to the recipe.
        question: What is asked.
        trust_remote_code: Run code that comes with the teacher.

    Raises:
        ConfigError: The teacher, a size or the question itself is not supported; the text is the reason.
    """
    _check_question(question)
    is_recipe = source.endswith((".yaml", ".yml"))
    machine = parse_machine(question.machine)
    recipe = _recipe(source, overrides, question, is_recipe=is_recipe, trust_remote_code=trust_remote_code)
    if recipe.method != "clone":
        raise ConfigError(
            f"lrc plan counts what method = clone trains and costs, found method = {recipe.method}: a student from "
            "scratch, all of whose parameters are trained. Plan with method=clone for the student's size."
        )
    config = load_config(locate_teacher(recipe.teacher), trust_remote_code=recipe.trust_remote_code)
    architecture = discover(config)
    measured_terms(architecture, variant_of(recipe.student), recipe.objective)
    check_teacher_weights(recipe, config, architecture)
    shape = _shape(recipe, question, machine, is_recipe=is_recipe)
    console = _console()
    size, answers = _hidden_size(recipe, question, machine, shape, config, architecture)
    for line in answers:
        console.print(line, markup=False, highlight=False)
    if size is None:
        return
    if is_recipe:
        require_family(config)
        supported = f"supported: {architecture.model_type}"
    else:
        *listed, supported = describe(source, hidden_size=size, trust_remote_code=recipe.trust_remote_code)
        print("\n".join(listed))
    sizes = measure_sizes(config, architecture, variant_of(recipe.student), size, dense=_dense(recipe))
    if sizes.later is not None:
        console.print(_phase_line(recipe, sizes.later), markup=False, highlight=False)
    found = Planner(sizes, shape, wanted_dtype=recipe.train.compute_dtype).plan(machine, _others(machine))
    print_plan(found, console)
    if is_recipe:  # of a teacher it is listed above
        print("\n".join(_size_lines(config, size)))
    if question.out is not None:
        _write(question.out, plan_to_dict(found))
    if found.problem is None:
        print(verdict(found))
    print(supported)


def _size_lines(config: Any, hidden_size: int) -> list[str]:
    title = "size       "
    return [
        fill(line, WIDTH, initial_indent=title, subsequent_indent=" " * len(title))
        for line in size_advice(config, hidden_size)
    ]


def _dense(recipe: Recipe) -> Dense | None:
    """What the dense phase at the run's end frees; None for a recipe without one."""
    phases = recipe.phases
    if first_dense_step(phases, recipe.train.max_steps) is None:
        return None
    return Dense(tensors=phases.dense_tensors, form=phases.dense_form)


def _phase_line(recipe: Recipe, later: Sizes) -> str:
    """Say what the dense phase trains and which numbers hold it."""
    phases = recipe.phases
    return (
        f"phases     the last {phases.dense_share:.0%} of the steps train {later.trained_parameters:,} values "
        f"({phases.dense_tensors}, {phases.dense_form}); all else counts the phase of projections, but memory, rows "
        "and checkpoints the larger phase"
    )


def _refused(recipe: Recipe) -> frozenset[str]:
    """Name the strategies that `lrc train` refuses for the recipe: its own checks are asked."""
    names = set()
    for strategy in STRATEGIES:
        train = replace(recipe.train, strategy=strategy.setting)
        try:
            check_strategy(recipe, choose_strategy(train, {"WORLD_SIZE": "2"}))
        except ConfigError:
            names.add(strategy.name)
    return frozenset(names)


def _check_question(question: Question) -> None:
    """Check what is asked before anything is read.

    Raises:
        ConfigError: Two flags exclude each other, a size is no size, or the file of `--json` is no plan.
    """
    pairs = {
        ("--fits", "--on"): (question.fits, question.on),
        ("--fits", "--params"): (question.fits, question.params),
        ("--params", "--hidden-size"): (question.params, question.hidden_size),
    }
    for (first, second), (one, other) in pairs.items():
        if one is not None and other is not None:
            raise ConfigError(
                f"{first} and {second} ask for two things, found {first} {one} and {second} {other}. {WHY[first]} "
                "Leave one of them out."
            )
    if question.hidden_size is not None and question.hidden_size < 1:
        raise ConfigError(f"--hidden-size must be at least 1, found {question.hidden_size}. Name the student's width.")
    if question.out is not None:
        _check_out(question.out)


def _recipe(
    source: str, overrides: tuple[str, ...], question: Question, *, is_recipe: bool, trust_remote_code: bool
) -> Recipe:
    """The recipe, or for a teacher one with the defaults; a hidden size that is asked for stands above the file's."""
    own = () if question.hidden_size is None else (f"student.hidden_size={question.hidden_size}",)
    if is_recipe:
        trust = ("trust_remote_code=true",) if trust_remote_code else ()
        return load_recipe(Path(source), (*overrides, *own, *trust))
    if question.hidden_size is None and question.params is None and question.fits is None:
        raise ConfigError(
            "lrc plan TEACHER needs the student's size: --hidden-size N, or ask for one with --params 1.5B or "
            "--fits 24GB."
        )
    values: dict[str, Any] = {"run": "runs/plan", "teacher": source, "trust_remote_code": trust_remote_code}
    # stands in for the hidden size that is asked for
    values |= {"student": {"hidden_size": question.hidden_size or 1}, "train": {"max_steps": 1}}
    values["data"] = {"train": "not read"}
    return recipe_from_dict(_with_overrides(values, overrides), origin="lrc plan")


def _with_overrides(values: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    changes = read_overrides(overrides, origin="lrc plan")
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), changes)
    except (TypeError, OmegaConfBaseException) as error:
        raise ConfigError(f"An override of {list(overrides)} can't be read as section.key=value: {error}") from error
    plain: dict[str, Any] = OmegaConf.to_container(merged)  # type: ignore[assignment]  # keys are strings here
    return plain


def _shape(recipe: Recipe, question: Question, machine: Machine, *, is_recipe: bool) -> RunShape:
    train = recipe.train
    mfu = PUBLISHED_MFU if question.mfu is None else question.mfu
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu is a share of the peak and must lie in 0..1, 0 left out, found {mfu}.")
    per_step = train.batch_size * train.gradient_accumulation_steps * recipe.data.sequence_length * machine.count
    tokens = float(train.max_steps * per_step) if is_recipe else PLANNED_TOKENS
    if question.tokens is not None:
        tokens = parse_count(question.tokens, what="--tokens")
    return RunShape(
        objective=recipe.objective,
        sequence=recipe.data.sequence_length,
        batch=train.batch_size,
        accumulation=train.gradient_accumulation_steps,
        merge=train.merge,
        optimizer=train.optimizer,
        masked=recipe.data.document_masking,
        tokens=tokens,
        checkpoints=num_kept(train),
        mfu=mfu,
        teacher_weights=recipe.teacher_weights,
        refused=_refused(recipe),
    )


def _hidden_size(
    recipe: Recipe, question: Question, machine: Machine, shape: RunShape, config: Any, architecture: Architecture
) -> tuple[int | None, list[str]]:
    """The hidden size to plan for, and the lines that answer what was asked; None: nothing fits."""
    variant = variant_of(recipe.student)
    if question.params is not None:
        wanted = parse_count(question.params, what="--params")
        answer = hidden_size_for(wanted, config=config, architecture=architecture, variant=variant)
        nearest = min(answer.nearest, key=lambda pair: abs(pair[1] - wanted))[0]
        return nearest, answer_lines(answer, wanted)
    if question.fits is None:
        return recipe.student.hidden_size, []
    best, lines = _largest_that_fits(recipe, machine, shape, config, architecture)
    return (best if question.hidden_size is None else question.hidden_size), lines


def _largest_that_fits(
    recipe: Recipe, machine: Machine, shape: RunShape, config: Any, architecture: Architecture
) -> tuple[int | None, list[str]]:
    """The largest hidden size of which one row fits in some way, None if none does, and a line a way.

    Raises:
        ConfigError: A step can't be followed, so that nothing is known of its memory.
    """
    candidates, best, lines = allowed_sizes(config), None, []
    planners: dict[int, Planner] = {}

    def fits(size: int, strategy: Strategy, checkpointing: Checkpointing) -> bool:
        if size not in planners:
            sizes = measure_sizes(config, architecture, variant_of(recipe.student), size, dense=_dense(recipe))
            planners[size] = Planner(sizes, replace(shape, batch=1), wanted_dtype=recipe.train.compute_dtype)
        memory = planners[size].memory(machine)
        try:
            peak = memory.peak(strategy, devices=machine.count, batch=1, checkpointing=checkpointing)
        except Exception as error:
            raise ConfigError(
                f"--fits needs the memory of a step, which can't be followed without values for {config.model_type}: "
                f"{problem_text(error)}. Ask for a size with --hidden-size or --params; the plan says the rest."
            ) from error
        return peak.use.total <= machine.usable_bytes

    for strategy in strategies_for(machine.count, recipe.teacher_weights, refused=shape.refused):
        for checkpointing in CHECKPOINTING:
            size = largest_size(candidates, partial(fits, strategy=strategy, checkpointing=checkpointing))
            best = max(filter(None, (best, size)), default=None)
            found = "no student" if size is None else f"hidden size up to {size}"
            way = way_in_words(strategy, checkpointing)
            lines.append(f"{machine.title}, {way}: {found} (one row of {shape.sequence} positions)")
    return best, lines


def _others(machine: Machine) -> tuple[Machine, ...]:
    usual = usual_machines()
    return usual if machine in usual else (*usual, machine)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal and console.width >= WIDTH else Console(width=WIDTH)


def _check_out(path: Path) -> None:
    """Refuse to replace what is no earlier plan."""
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not found.keys() >= PLAN_KEYS:
        raise ConfigError(f"--json {path} is there and is no plan of lrc, so it is not replaced. Name another file.")


def _write(path: Path, values: dict[str, Any]) -> None:
    from lrc.training.beside import write_beside

    try:
        write_beside(path, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--json {path} can't be written: {error}.") from error
