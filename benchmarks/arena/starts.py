"""Where the start of a cell is kept: cells that begin alike share one file, computed by the first of them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import lrc
from lrc.config import Recipe
from lrc.models.checkpoint import versions
from lrc.models.compute import choose_device, choose_dtype, dtype_name
from lrc.models.folder import weights_hash
from lrc.verbs.kept_start import start_settings

SOURCES = ("clone", "data", "models", "verbs/train_start.py")
"""Folders and files of the package that a start's numbers follow from."""


def start_file(folder: Path, recipe: Recipe, *, teacher: Path, train_sha256: str) -> Path | None:
    """Return the file of a recipe's start, named by a hash of everything that it follows from.

    The objective and the optimiser are not among it; the pair's tensors are compared when the file is read.

    Args:
        folder: Where starts are kept.
        recipe: The cell's.
        teacher: The teacher's folder.
        train_sha256: Of the text that is trained on.

    Returns:
        None for a start that reads no text; it takes no time.
    """
    if recipe.start.method == "random" or recipe.method != "clone":
        return None
    device = choose_device(recipe.train.device)
    facts = {
        **start_settings(recipe),
        "teacher": weights_hash(teacher),
        "text": train_sha256,
        "sequence_length": recipe.data.sequence_length,
        "device": device.type,
        "compute_dtype": dtype_name(choose_dtype(recipe.train.compute_dtype, device)),
        "versions": versions(),
        "source": source_hash(Path(lrc.__file__).parent),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return folder / f"{recipe.start.method}-{digest[:16]}.safetensors"


def source_hash(package: Path, places: Iterable[str] = SOURCES) -> str:
    """Identify code, a start's or that of other places in the package: SHA-256 over names and contents of its files."""
    digest = hashlib.sha256()
    for place in places:
        path = package / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(f"{file.relative_to(package)}\0{file.read_text(encoding='utf-8')}\0".encode())
    return digest.hexdigest()
