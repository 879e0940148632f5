"""Where a checkpoint lies: under its name, or under the one that it has while a new one takes its place."""

from pathlib import Path

REPLACED = ".replaced"
"""Ending of `.checkpoint-N.replaced`, the old checkpoint of a step while the new one gets its name."""


def set_aside(checkpoint: Path) -> Path:
    """Return the name that a checkpoint has between the two renames that replace it."""
    return checkpoint.with_name(f".{checkpoint.name}{REPLACED}")


def find_set_aside(path: Path) -> Path:
    """Return where a named checkpoint lies; a kill between the two renames leaves it under its other name.

    Nothing is renamed: the run gives the name back when it goes on (`lrc/training/checkpoint.py:clear_drafts`).

    Args:
        path: `checkpoint-N`, or a file in it.

    Returns:
        `.checkpoint-N.replaced`, or the file in it, if only that is there; else `path`.
    """
    for folder, file in ((path, ""), (path.parent, path.name)):
        if folder.name and not folder.exists() and set_aside(folder).is_dir():
            return set_aside(folder) / file
    return path
