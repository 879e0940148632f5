"""A run's folder: who may write to it, and what is deleted before a run begins anew."""

import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lrc.config import Recipe
from lrc.errors import CheckpointError, ConfigError
from lrc.training.checkpoint_list import checkpoints
from lrc.training.launch import write_recipe
from lrc.training.launch_environment import launched_rank

RECIPE = "recipe.yaml"
"""The first file that a run writes into its folder; so a folder without it is nobody's run."""


def check_run_folder(folder: Path, inputs: Iterable[str]) -> None:
    """Check that a run that begins anew deletes nothing but an earlier run.

    Args:
        folder: The verb's folder.
        inputs: Paths that the run reads, globs too; names of something else do no harm.

    Raises:
        ConfigError: An input lies in the folder, or files that no run has written.
        CheckpointError: The folder can't be read.
    """
    for name in inputs:
        found = glob.glob(name, recursive=True) if glob.has_magic(name) else []
        if any(_lies_in(Path(path), folder) for path in (name, *found)):
            raise ConfigError(
                f"{folder} is where the run is written, and emptied first, but {name} lies in it. Name another run "
                "folder (run=...)."
            )
    if not folder.is_dir() or (folder / RECIPE).is_file():
        return
    try:
        entries = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise CheckpointError(f"The run folder {folder} can't be read: {error}.") from error
    strangers = [name for name in entries if not name.lstrip(".").startswith(("checkpoint-", RECIPE))]
    if strangers:
        raise ConfigError(
            f"{folder} holds {min(strangers)} but no {RECIPE}, so it is no run's folder, and a run would empty it. "
            "Name another run folder (run=...)."
        )


def _lies_in(path: Path, folder: Path) -> bool:
    """Tell whether a path is the folder or below it: by its name, or where its links lead."""
    names = (path.absolute(), folder.absolute()), (path.resolve(), folder.resolve())
    return any(place in (one, *one.parents) for one, place in names)


def prepare_folder(folder: Path, recipe: Recipe, *, goes_on: bool, overwrite: bool) -> None:
    """Make a run's folder and write the recipe into it; without `goes_on` empty it first.

    Args:
        folder: The verb's folder; `check_run_folder` has seen it.
        recipe: The run.
        goes_on: The run goes on from a checkpoint.
        overwrite: Checkpoints may be deleted.

    Raises:
        CheckpointError: The folder can't be written, or has checkpoints by now that must not be deleted.
    """
    if not goes_on and not overwrite and checkpoints(folder):
        raise CheckpointError(f"Another run has written checkpoints to {folder} meanwhile. Name another one (run=...).")
    try:
        if not goes_on and folder.exists():
            _empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_recipe(folder / RECIPE, recipe)
    except OSError as error:
        raise CheckpointError(f"The run folder {folder} can't be written: {error}.") from error


def _empty(folder: Path) -> None:
    """Delete what a folder holds, its recipe last: until then it is known as a run's. The folder may be a link."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == RECIPE):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def only_run(folder: Path) -> Iterator[Callable[[], None]]:
    """Let no second run write to a folder while the context is open.

    The first of a run's processes locks a file for all; the system lets go of it when the process ends, however it
    ends. It makes the file when it is told to, by what the context gives, once there is something to write; a file that
    is there is locked at once. On a file system without locks nothing is kept out.

    Raises:
        CheckpointError: Another run writes to the folder; from what the context gives, too.
    """
    path, files = folder.with_name(f".{folder.name}.lock"), list[TextIO]()  # beside it: a run may delete the folder

    def hold() -> None:
        if files or launched_rank(os.environ) > 0:
            return
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError:  # said when the folder is written
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise CheckpointError(
                f"Another run writes to {folder} (it has locked {path}). Wait until it has ended, or name another run "
                "folder (run=...)."
            ) from error
        except OSError:
            file.close()
        else:
            files.append(file)

    try:
        if path.exists():
            hold()
        yield hold
    finally:
        for file in files:
            file.close()
