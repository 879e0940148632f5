"""Which checkpoints a run has: the one to go on from, those to keep, and those to drop."""

import re
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from lrc.data.folder_hash import SUMS, find_damage
from lrc.errors import CheckpointError
from lrc.models.set_aside import REPLACED, find_set_aside
from lrc.training.checkpoint import STATE, read_state, remove_checkpoint
from lrc.training.together import by_first, together

BEGUN = "start.safetensors"
"""The start's values, in the run's folder until the first checkpoint has them."""
_NAME = re.compile(r"checkpoint-(\d+)$")
_REPLACED_NAME = re.compile(rf"\.checkpoint-(\d+)\{REPLACED}$")


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first; half-written and half-deleted ones have another name.

    `.checkpoint-N.replaced` stands for a `checkpoint-N` that is absent: a kill came between the two renames of a save.
    """
    replaced = _named(folder, _REPLACED_NAME)
    return [path for _, path in sorted((replaced | _named(folder, _NAME)).items())]


def _named(folder: Path, name: re.Pattern[str]) -> dict[int, Path]:
    found = {path: name.match(path.name) for path in folder.glob("*checkpoint-*")}
    return {int(match[1]): path for path, match in found.items() if match and _is_checkpoint(path)}


def _is_checkpoint(path: Path) -> bool:
    return any((path / name).is_file() for name in (SUMS, STATE))


def step_of(path: Path) -> int:
    """Return `N` of a `checkpoint-N`, or of the one that was set aside to be replaced."""
    return int(path.name.removesuffix(REPLACED).rpartition("-")[2])


def find_resume(folder: Path, resume: str, note: Callable[[str], None]) -> Path | None:
    """Resolve `--resume`: `auto` is the newest checkpoint that is whole (None if there is none at all), else a folder.

    Args:
        folder: The verb's folder.
        resume: `auto` or a checkpoint.
        note: Takes a line on every damaged checkpoint that `auto` passes over.

    Raises:
        CheckpointError: The named folder is no checkpoint or is damaged, or every checkpoint of the run is.
    """
    return _newest_whole(folder, resume, _candidates(folder, resume), find_damage, note)


def agreed_resume(accelerator: Accelerator, folder: Path, resume: str, note: Callable[[str], None]) -> Path | None:
    """`find_resume` on all ranks: each reads a share of a checkpoint's files, the first one tells what was found.

    Raises:
        CheckpointError: As `find_resume`, on every rank.
    """
    share = (accelerator.process_index, accelerator.num_processes)

    def inspect(path: Path) -> str | None:
        found = together(accelerator, lambda: find_damage(path, share=share))
        return next((damage for damage in found if damage is not None), None)

    tell = note if accelerator.is_main_process else lambda line: None
    candidates = by_first(accelerator, lambda: _candidates(folder, resume))
    return _newest_whole(folder, resume, candidates, inspect, tell)


def _candidates(folder: Path, resume: str) -> list[Path]:
    """List what a run may go on from, the first choice first."""
    if resume == "auto":
        return checkpoints(folder)[::-1]
    named = find_set_aside(Path(resume))
    if not _is_checkpoint(named):
        raise CheckpointError(f"--resume must name a checkpoint folder or be 'auto', but {resume} has no {STATE}.")
    return [named]


def _newest_whole(
    folder: Path,
    resume: str,
    candidates: list[Path],
    inspect: Callable[[Path], str | None],
    note: Callable[[str], None],
) -> Path | None:
    damages = []
    for path in candidates:
        damage = inspect(path)
        if damage is None:
            return path
        if resume != "auto":
            raise CheckpointError(f"The checkpoint {path} is damaged: {damage}. Resume from another one.")
        note(f"the checkpoint {path} is damaged and passed over: {damage}")
        damages.append(damage)
    if damages:
        raise CheckpointError(
            f"No checkpoint in {folder} is whole, the newest too: {damages[0]}. Put the file right, or start anew "
            "with --overwrite."
        )
    return None


def discard_after(folder: Path, step: int) -> None:
    """Delete a run's checkpoints after `step`, which a run that goes on from there will write anew."""
    for path in checkpoints(folder):
        if step_of(path) > step:
            remove_checkpoint(path)


def best_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with the lowest KL on the held-out text; None if none was measured."""
    measured = {path: _held_out_kl(path) for path in checkpoints(folder)}
    lowest = {path: kl for path, kl in measured.items() if kl is not None}
    return min(lowest, key=lowest.__getitem__, default=None)


def _held_out_kl(path: Path) -> float | None:
    try:
        return read_state(path).held_out_kl
    except CheckpointError:  # a damaged one is nobody's best; resume names it
        return None


def rotate(folder: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and the start that they now hold."""
    (folder / BEGUN).unlink(missing_ok=True)
    if keep is not None:
        best = best_checkpoint(folder)
        for path in checkpoints(folder)[:-keep]:
            if path != best:
                remove_checkpoint(path)
