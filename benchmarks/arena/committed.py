"""Results in the repository (`benchmarks/results/quality`): finished cells without what says where they were made."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lrc.errors import DataError
from lrc.training.beside import write_beside

from .cells import parse_cell
from .picked_rates import RATES, read_rates
from .results import Result
from .teachers import teachers

COMMITTED = Path(__file__).parents[1] / "results" / "quality"
DIGITS = 7
"""Significant digits of a number."""
NUMBERS = re.compile(r"\[\s+((?:[-+.\de]+,\s+)*[-+.\de]+)\s+\]")
ABSOLUTE = re.compile(r"(?:^|[\s=:'\"(,])(?:/(?!/)|~/|[A-Za-z]:\\)|file:")


def publish(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write cells into the folder, each below about 20 kB; returns the files.

    Raises:
        DataError: A string of a cell is an absolute path, and not one that is known to be replaced.
    """
    texts = {folder / parse_cell(result["cell"]).file_name: published_text(result) for result in results}
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_beside(path, text)
    return list(texts)


def publish_rates(root: Path, folder: Path, of_teachers: set[str]) -> None:
    """Write the learning rates that were picked for some teachers into the folder, over those that it has of them."""
    picked = read_rates(root / RATES)
    kept = read_rates(folder / RATES)
    for teacher in sorted(of_teachers & picked.keys()):
        kept.setdefault(teacher, {}).update(picked[teacher])
    if kept:
        write_beside(folder / RATES, json.dumps(kept, indent=1) + "\n")


def published_text(result: Result) -> str:
    """Return the JSON of a cell without machine paths: run, texts and teacher go by their roles' names.

    Raises:
        DataError: As `publish`.
    """
    recipe = result["recipe"]
    source = teachers()[result["teacher"]].source
    places = {
        "run": f"runs/{result['cell']}",
        "teacher": source if recipe["teacher"] == source else result["teacher"],
        "data": {**recipe["data"], "train": "train", "held_out": "development"},
    }
    plain = _rounded({**result, "recipe": {**recipe, **places}})
    for key, text in strings(plain):
        if ABSOLUTE.search(text):
            raise DataError(f"{result['cell']} can't be published: {key} must hold no absolute path, found {text!r}.")
    lines = json.dumps(plain, indent=1)
    return NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", lines) + "\n"


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of nested values with its key; keys of dictionaries are strings too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield key, name
            yield from strings(inner, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from strings(inner, f"{key}[{place}]")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
