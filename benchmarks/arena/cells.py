"""A cell of the table by name, `TEACHER/WIDTH/METHOD/TOKENS/SEED`, and the recipe that it stands for.

`smollm2/half/default/250k/seed0`; a method may name its learning rate, `published@0.001`, else it takes the one that
`rates` picked for the teacher, else its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lrc.config import Recipe, load_recipe
from lrc.errors import ConfigError, nearest_name

from .methods import find_method, methods
from .teachers import TeacherEntry, teachers

NAME = re.compile(r"([^/]+)/([^/]+)/([^/@]+)(?:@([^/]+))?/(\d+[km])/seed(\d+)")
UNITS = {"k": 1_000, "m": 1_000_000}
EIGHTHS = (0, 1, 2, 4, 8)
"""Eighths of a run that are measured in full."""
Rates = Mapping[str, Mapping[str, float]]
"""Teacher -> method -> learning rate picked on the development text."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the table."""

    teacher: str
    width: str
    method: str
    rate: float | None
    """As the name gives it; None: picked, or the method's own."""
    tokens: str
    seed: int

    @property
    def name(self) -> str:
        rate = "" if self.rate is None else f"@{self.rate:g}"
        return f"{self.teacher}/{self.width}/{self.method}{rate}/{self.tokens}/seed{self.seed}"

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('/', '.')}.json"

    @property
    def entry(self) -> TeacherEntry:
        return teachers()[self.teacher]

    @property
    def batch_size(self) -> int:
        """Windows a step."""
        return find_method(self.method).batch_size or self.entry.batch_size

    @property
    def num_steps(self) -> int:
        """Steps nearest to the tokens that are a whole number of eighths; other batches see as many windows."""
        match = re.fullmatch(r"(\d+)([km])", self.tokens)
        assert match is not None
        wanted = int(match[1]) * UNITS[match[2]]
        eighths = max(1, round(wanted / (self.entry.sequence_length * self.entry.batch_size) / 8))
        return 8 * max(1, round(eighths * self.entry.batch_size / self.batch_size))

    @property
    def measured_steps(self) -> set[int]:
        return {self.num_steps * eighth // 8 for eighth in EIGHTHS}


def parse_cell(name: str) -> Cell:
    """Read a cell's name.

    Raises:
        ConfigError: It has another form, or names what there is not.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise ConfigError(
            f"A cell must look like TEACHER/WIDTH/METHOD/TOKENS/SEED, for example smollm2/half/default/250k/seed0, "
            f"found {name!r}. `--list` shows the cells of the table."
        )
    teacher, width, method, rate, tokens, seed = match.groups()
    known = teachers()
    _require(teacher, known, "teacher")
    _require(width, known[teacher].widths, f"width of {teacher}")
    find_method(method)
    try:
        number = None if rate is None else float(rate)
    except ValueError as error:
        raise ConfigError(f"The learning rate in {name!r} must be a number, found {rate!r}.") from error
    return Cell(teacher=teacher, width=width, method=method, rate=number, tokens=tokens, seed=int(seed))


def _require(name: str, known: Mapping[str, object], what: str) -> None:
    if name not in known:
        near = nearest_name(name, known)
        hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(known)}."
        raise ConfigError(f"There is no {what} {name!r}. {hint}")


def table_cells() -> list[Cell]:
    """List the cells of the main table: three seeds for the headline, one elsewhere, 1 M tokens for three methods."""
    cells = []
    for teacher, entry in teachers().items():
        if teacher == "tiny":
            continue
        for width in entry.widths:
            is_headline = teacher == "smollm2" and width == "half"
            for method in methods():
                for seed in range(3 if is_headline else 1):
                    cells.append(_cell(teacher, width, method, entry.headline, seed))
    cells += [_cell("smollm2", "half", method, "1m", 0) for method in ("published", "red", "default")]
    return cells


def quick_cells(tokens: str | None, chosen: list[str] | None) -> list[Cell]:
    """List the cells of the quick version: every method on the tiny teacher, or those chosen."""
    return [_cell("tiny", "half", name, tokens or teachers()["tiny"].headline, 0) for name in chosen or methods()]


def _cell(teacher: str, width: str, method: str, tokens: str, seed: int) -> Cell:
    return Cell(teacher=teacher, width=width, method=method, rate=None, tokens=tokens, seed=seed)


def rate_cells(teacher: str, width: str, method: str, tokens: str | None = None) -> list[Cell]:
    """List the short cells that a method's learning rate is picked from; `tokens` is another budget than usual."""
    names = [f"{teacher}/{width}/{method}@{rate:g}" for rate in find_method(method).rates]
    return [parse_cell(f"{name}/{tokens or teachers()[teacher].short}/seed0") for name in names]


def picked_rate(cell: Cell, rates: Rates) -> float | None:
    """Return the learning rate in a cell's name, or the one picked for its method or for the base of that; or None."""
    picked = rates.get(cell.teacher, {})
    base = find_method(cell.method).base
    found = (cell.rate, picked.get(cell.method), picked.get(base) if base is not None else None)
    return next((rate for rate in found if rate is not None), None)


def cell_rate(cell: Cell, rates: Rates) -> float:
    """Return the learning rate that a cell trains with: the picked one, else its method's own."""
    picked = picked_rate(cell, rates)
    return find_method(cell.method).rate if picked is None else picked


def cell_recipe(cell: Cell, *, run: Path, teacher: str, texts: Mapping[str, Path], rates: Rates) -> Recipe:
    """Return the recipe of a cell: the demo's, the arena's sizes, then what the method changes.

    Args:
        cell: Which.
        run: Its run folder.
        teacher: Folder, hub id or embedded teacher.
        texts: Files by role.
        rates: Picked learning rates.

    Raises:
        ConfigError: The recipe does not know a key that the method needs, or values contradict each other.
    """
    entry, steps = cell.entry, cell.num_steps
    sizes = (
        f"run={run}",
        f"teacher={teacher}",
        f"student.hidden_size={entry.widths[cell.width]}",
        f"start.tokens={entry.start_tokens}",
        f"data.train={texts['train']}",
        f"data.held_out={texts['development']}",
        f"data.sequence_length={entry.sequence_length}",
        "data.document_masking=false",
        f"data.held_out_tokens={4 * entry.sequence_length}",
        f"train.max_steps={steps}",
        f"train.batch_size={cell.batch_size}",
        "train.gradient_accumulation_steps=1",
        f"train.evaluate_steps={steps // 8}",
        f"train.save_steps={max(1, min(25, steps // 8))}",
        "train.save_total_limit=1",
        "train.log_steps=1",
        f"train.compile={str(entry.is_compiled).lower()}",
        f"train.seed={cell.seed}",
    )
    method = find_method(cell.method)
    changes = (*sizes, f"train.learning_rate={cell_rate(cell, rates)}", *method.changes)
    if cell.rate is not None:
        changes = (*changes, f"train.learning_rate={cell.rate}")
    return load_recipe(Path(str(files("lrc.verbs") / "demo.yaml")), changes)
