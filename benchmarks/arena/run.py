"""Runs a cell: everything is checked, the training loop trains and measures, one JSON file holds the result.

A finished cell is kept, a killed one goes on from its last checkpoint; one that another process runs is waited for.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import lrc
from lrc.config import Recipe, load_recipe, recipe_to_dict
from lrc.models.checkpoint import versions
from lrc.models.compute import choose_device, choose_dtype, dtype_name, products_flops_per_second
from lrc.models.folder import resolve_folder, weights_hash
from lrc.models.teacher import load_config, load_tokenizer
from lrc.training.beside import write_beside
from lrc.training.checkpoint_list import checkpoints
from lrc.verbs.progress import say
from lrc.verbs.sources import locate_teacher
from lrc.verbs.train import train

from .alone import alone
from .cells import Cell, Rates, cell_recipe, picked_rate
from .committed import COMMITTED
from .gemma import gemma_teacher
from .identity import check_same, identity, identity_of
from .measures import PointMeasure, Tasks, measured_texts
from .picked_rates import RATES, read_rates
from .results import FORMAT, read_results
from .starts import source_hash, start_file
from .teachers import make_tiny_teacher
from .texts import Texts, prepare_texts

TINY_TEACHER_STEPS = 400
BEGUN_TEXTS = "arena_texts.json"
"""What a cell reads, in its run folder: a run that was killed goes on with the same texts only."""
DTYPES = "arena_dtypes.json"
"""Beside it: the compute dtypes of the sittings, in order; a run that was killed may go on on another machine."""


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Where cells run and what they read."""

    root: Path = Path("runs/quality")
    committed: Path = COMMITTED
    """Results in the repository; its picked learning rates count where the root has none."""
    data: Path | None = None
    """Folder of corpora; None: what the demo embeds."""
    teachers: Mapping[str, str] = field(default_factory=dict)
    """Teacher -> folder or hub id, instead of its own."""
    tasks: Tasks | None = None
    all_points: bool = False
    """Score tasks at every point, not at the first and the last alone."""
    keep: bool = False
    """Keep the last checkpoint."""
    tiny_teacher_steps: int = TINY_TEACHER_STEPS

    @property
    def results(self) -> Path:
        return self.root / "results"

    def texts(self, cell: Cell) -> Texts:
        entry = cell.entry
        is_tiny = cell.teacher == "tiny"
        return prepare_texts(self.root / "texts", data=self.data, train_bytes=entry.train_bytes, is_tiny=is_tiny)

    def teacher(self, cell: Cell, texts: Texts) -> str:
        """Return the folder or name of a cell's teacher; Gemma is fetched, the tiny one is made."""
        named = self.teachers.get(cell.teacher) or cell.entry.source
        if named is not None:
            return named
        if cell.teacher == "gemma3":
            return str(gemma_teacher())
        folder = self.root / f"tiny-teacher-{self.tiny_teacher_steps}-{texts.sha256['train'][:12]}"
        rows = texts.paths["train"].read_text(encoding="utf-8").splitlines()
        text = "\n\n".join(json.loads(row)["text"] for row in rows)
        return str(make_tiny_teacher(folder, text=text, steps=self.tiny_teacher_steps))

    def rates(self) -> Rates:
        picked: dict[str, dict[str, float]] = {}
        for folder in (self.committed, self.root):
            for teacher, found in read_rates(folder / RATES).items():
                picked.setdefault(teacher, {}).update({name: entry["rate"] for name, entry in found.items()})
        return picked


def run_cell(arena: Arena, cell: Cell, *, overwrite: bool = False) -> dict[str, Any]:
    """Train and measure a cell, unless its result is there; returns the result.

    Raises:
        ConfigError: The recipe does not know a key of the method; or a result or a begun run of that name was made
            with another recipe, other texts or another teacher.
    """
    run = arena.root / "runs" / cell.name
    with alone(run):
        return _run_alone(arena, cell, run, overwrite=overwrite)


def _run_alone(arena: Arena, cell: Cell, run: Path, *, overwrite: bool) -> dict[str, Any]:
    texts = arena.texts(cell)
    teacher = arena.teacher(cell, texts)
    rates = arena.rates()
    recipe = cell_recipe(cell, run=run, teacher=teacher, texts=texts.paths, rates=rates)
    teacher_folder = resolve_folder(locate_teacher(teacher))
    teacher_hash = weights_hash(teacher_folder)
    wanted = identity(recipe_to_dict(recipe), _texts_facts(cell, texts), teacher_hash)
    path = arena.results / cell.file_name
    if path.is_file() and not overwrite:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_same(wanted, identity_of(kept, teacher_hash), str(path))
        say(f"{cell.name}: kept{_unscored(arena, kept)}")
        return kept
    result = None if overwrite else _same_run(arena, cell, wanted, teacher_hash)
    if result is not None:
        say(f"{cell.name}: the same run as {result['same_run_as']}, which is finished")
        write_beside(path, json.dumps(result, indent=1) + "\n")
        return result
    _check_begun(run, wanted, teacher_hash, overwrite=overwrite)
    whose = ", the method's own: none was picked" if picked_rate(cell, rates) is None else ""
    say(f"{cell.name}: {cell.num_steps} steps, learning rate {recipe.train.learning_rate:g}{whose}")
    measure = _point_measure(arena, cell, texts, teacher)
    start = start_file(
        arena.root / "starts",
        recipe,
        teacher=teacher_folder,
        train_sha256=texts.sha256["train"],
    )
    run.mkdir(parents=True, exist_ok=True)
    write_beside(run / BEGUN_TEXTS, json.dumps(_texts_facts(cell, texts)) + "\n")
    resume = None if overwrite else "auto"
    _note_dtype(run, recipe, is_new=overwrite or not checkpoints(run / "train"))
    train(recipe, resume=resume, overwrite=overwrite, also_measure=measure, keep_start=start)
    result = _result(arena, cell, recipe, texts, teacher_hash)
    arena.results.mkdir(parents=True, exist_ok=True)
    write_beside(path, json.dumps(result, indent=1) + "\n")
    if not arena.keep:
        for checkpoint in (run / "train").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return result


def _note_dtype(run: Path, recipe: Recipe, *, is_new: bool) -> None:
    """Keep what a sitting computes in, if another than the one before did, or a new run begins."""
    path, own = run / DTYPES, dtype_name(choose_dtype(recipe.train.compute_dtype, choose_device(recipe.train.device)))
    known: list[str] = [] if is_new or not path.is_file() else json.loads(path.read_text(encoding="utf-8"))
    if known[-1:] != [own]:
        write_beside(path, json.dumps([*known, own]) + "\n")


def _check_begun(run: Path, wanted: dict[str, Any], teacher_hash: str, *, overwrite: bool) -> None:
    """Check that a run that was killed read the same texts by the same recipe.

    Raises:
        ConfigError: It did not.
    """
    recipe, texts = run / "train" / "recipe.yaml", run / BEGUN_TEXTS
    if overwrite or not recipe.is_file():
        return
    read = json.loads(texts.read_text(encoding="utf-8")) if texts.is_file() else {}
    check_same(wanted, identity(recipe_to_dict(load_recipe(recipe)), read, teacher_hash), str(recipe))


def _unscored(arena: Arena, kept: dict[str, Any]) -> str:
    """Say so if tasks are asked for that a kept cell was not scored on."""
    if arena.tasks is None or "cloze" in kept["points"][-1]:
        return ""
    return "; it was not scored on tasks, and its checkpoint may be gone: --overwrite makes it anew"


def _same_run(arena: Arena, cell: Cell, wanted: dict[str, Any], teacher_hash: str) -> dict[str, Any] | None:
    """Return the root's result of another cell with the same recipe, texts and teacher under this cell's name, or None.

    Sweeps have a variant that changes nothing, and the default is one of them.
    """
    if arena.tasks is not None:
        return None  # other cells may have been scored on other tasks
    for other in read_results([arena.results]):
        if other["teacher"] == cell.teacher and identity_of(other, teacher_hash) == wanted:
            named = {"cell": cell.name, "method": cell.method, "tokens": cell.tokens, "command": _command(arena, cell)}
            return {**other, **named, "same_run_as": other.get("same_run_as", other["cell"])}
    return None


def _point_measure(arena: Arena, cell: Cell, texts: Texts, teacher: str) -> PointMeasure:
    folder = resolve_folder(locate_teacher(teacher))
    entry, steps = cell.entry, cell.measured_steps
    read = measured_texts(texts.paths, folder, sequence_length=entry.sequence_length, count=entry.measured_windows)
    task_steps = steps if arena.all_points else {0, cell.num_steps}
    if arena.tasks is not None:
        arena.tasks.names()
    return PointMeasure(read, steps=steps, tokenizer=load_tokenizer(folder), tasks=arena.tasks, task_steps=task_steps)


def _result(arena: Arena, cell: Cell, recipe: Recipe, texts: Texts, teacher_hash: str) -> dict[str, Any]:
    folder = Path(recipe.run) / "train"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    start = json.loads((folder / "start.json").read_text(encoding="utf-8"))
    device = choose_device(recipe.train.device)
    dtypes: list[str] = json.loads((Path(recipe.run) / DTYPES).read_text(encoding="utf-8"))
    dtype = choose_dtype(recipe.train.compute_dtype, device)
    config = load_config(str(resolve_folder(locate_teacher(recipe.teacher))))
    return {
        "format": FORMAT,
        "cell": cell.name,
        "teacher": cell.teacher,
        "teacher_hash": teacher_hash,
        "width": cell.width,
        "method": cell.method,
        "tokens": cell.tokens,
        "seed": cell.seed,
        "hidden_size": {"teacher": config.hidden_size, "student": recipe.student.hidden_size},
        "calibration_tokens": start["calibration_tokens"],
        "points": points(lines, start_seconds=start["seconds"]),
        "texts": _texts_facts(cell, texts),
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
            "dtype": " then ".join(dtypes),
            "threads": torch.get_num_threads(),
            "products_flops_per_second": products_flops_per_second(dtype) if device.type == "cpu" else None,
        },
        "versions": {**versions(), "source": source_hash(Path(lrc.__file__).parent, ("",))[:16]},
        "recipe": recipe_to_dict(recipe),
        "command": _command(arena, cell),
    }


def _command(arena: Arena, cell: Cell) -> str:
    told = " --data DIR" if arena.data else ""
    if arena.tasks is not None:
        told += " --evaluation-data DIR"
        told += "" if arena.tasks.limit is None else f" --evaluation-items {arena.tasks.limit}"
        told += " --evaluation-points all" if arena.all_points else ""
    return f"python benchmarks/quality.py {cell.name}{told}"


def points(lines: list[dict[str, Any]], *, start_seconds: float) -> list[dict[str, Any]]:
    """Collect the curve from a run's log.

    Seconds are the start's and those of the steps, from their rates: what measuring took is left out, and what a
    killed run did twice counts once.
    """
    found: dict[int, dict[str, Any]] = {}
    seconds, tokens = start_seconds, 0
    for line in lines:
        if line["kind"] == "train":
            seconds += (line["tokens"] - tokens) / max(1e-9, line["tokens_per_second"])
            tokens = line["tokens"]
        elif "arena" in line:
            found[line["step"]] = {
                "step": line["step"],
                "tokens": line["tokens"],
                "seconds": seconds,
                **line["arena"],
            }
    return [found[step] for step in sorted(found)]


def _texts_facts(cell: Cell, texts: Texts) -> dict[str, Any]:
    """Say what was read, and how much of each text is measured."""
    entry = cell.entry
    windows = f"{entry.measured_windows} of {entry.sequence_length} tokens, spread evenly"
    return {"origin": texts.origin, "sha256": texts.sha256, "windows": windows}
