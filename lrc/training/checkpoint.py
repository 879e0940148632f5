"""Checkpoints of a training run: trained tensors, optimiser state and position, written whole or not at all.

One format whatever trained (one process, DDP, FSDP2, DeepSpeed) and on how many ranks: every tensor whole, so that any
number of ranks reads it and `lrc convert` needs to know nothing.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrc.data.folder_hash import find_damage, write_sums
from lrc.errors import CheckpointError
from lrc.models.checkpoint import LRC_CONFIG, TRAINED_TENSORS
from lrc.training.run_state import RunState

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
REPLACED = ".replaced"
"""Ending of `.checkpoint-N.replaced`, the old checkpoint of a step while the new one gets its name."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds, on the CPU."""

    weights: dict[str, Tensor]
    """Trained tensors by checkpoint name, float32."""
    moments: dict[str, Tensor]
    """The optimiser's state as `KEY/NAME`: what `lrc/training/optimizer.py:moment_shapes` lists."""
    state: RunState


def save_checkpoint(folder: Path, saved: Saved, facts: dict[str, Any]) -> Path:
    """Write `folder/checkpoint-STEP` beside and rename it into place.

    Args:
        folder: The verb's folder.
        saved: Tensors and position.
        facts: Content of `lrc_config.json`.

    Raises:
        CheckpointError: The disk is full or not writable; nothing that existed is touched.
    """
    target = folder / f"checkpoint-{saved.state.step}"
    draft, replaced = folder / f".{target.name}.partial", folder / f".{target.name}{REPLACED}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(saved.weights, draft / TRAINED_TENSORS, metadata={"format": "pt"})
        save_file(saved.moments, draft / OPTIMIZER)
        (draft / LRC_CONFIG).write_text(json.dumps(facts, indent=2) + "\n")
        (draft / STATE).write_text(saved.state.to_json())
        write_sums(draft)
        for name in (TRAINED_TENSORS, OPTIMIZER):
            (draft / name).chmod(0o644)  # safetensors lets nobody but the owner read
        for path in (*draft.iterdir(), draft):
            _flush(path)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)  # after a kill here it still counts as the checkpoint
        draft.rename(target)
        _flush(folder)
        if replaced.exists():
            shutil.rmtree(replaced)
    except (OSError, SafetensorError) as error:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(write_failure(f"The checkpoint {target}", error)) from error
    return target


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; a kill on the way leaves no half of it under its name."""
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    shutil.rmtree(path.rename(doomed))


def clear_drafts(folder: Path) -> None:
    """Delete what a kill left of checkpoints that were being written, replaced or deleted.

    A replaced one whose successor did not get its name gets its own back.
    """
    for path in folder.glob(f".checkpoint-*{REPLACED}"):
        target = path.with_name(path.name[1:].removesuffix(REPLACED))
        if not target.exists():
            path.rename(target)
    for ending in (".partial", ".removed", REPLACED):
        for path in folder.glob(f".checkpoint-*{ending}"):
            shutil.rmtree(path)


def write_failure(what: str, error: Exception) -> str:
    """Word an error of the file system for the user, who goes on with `--resume auto`."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    full = full or "os error 28" in str(error) or "os error 27" in str(error)
    reason = "the disk is full" if full else str(error)
    return (
        f"{what} can't be written: {reason}. Earlier checkpoints are untouched; free some space or fix the folder, "
        "then go on with --resume auto."
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(folder: Path, shapes: dict[str, torch.Size], moment_shapes: dict[str, torch.Size]) -> Saved:
    """Read a checkpoint, bit for bit as it was written.

    Args:
        folder: `checkpoint-N`.
        shapes: The run's trained tensors by name.
        moment_shapes: What the run's optimiser remembers, by name in the checkpoint.

    Raises:
        CheckpointError: A file is missing or damaged, or holds other tensors than the run has.
    """
    damage = find_damage(folder)
    if damage is not None:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {damage}. Resume from another one.")
    try:
        weights = load_file(folder / TRAINED_TENSORS)
        moments = load_file(folder / OPTIMIZER)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {folder} can't be read: {error}. Resume from another one.") from error
    _check_tensors(folder, shapes, weights, "trained tensors")
    _check_tensors(folder, moment_shapes, moments, "optimiser state")
    return Saved(weights=weights, moments=moments, state=read_state(folder))


def read_state(folder: Path) -> RunState:
    """Read where the run of a checkpoint stood.

    Raises:
        CheckpointError: `state.json` can't be read.
    """
    try:
        return RunState.from_json((folder / STATE).read_text())
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE} can't be read: {error}. Resume from another checkpoint.") from error


def _check_tensors(folder: Path, wanted: dict[str, torch.Size], tensors: dict[str, Tensor], what: str) -> None:
    found = {name: tensor.shape for name, tensor in tensors.items()}
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        first = odd[0]
        shapes = [list(side[first]) if first in side else "missing" for side in (found, wanted)]
        raise CheckpointError(
            f"The checkpoint {folder} belongs to another student: {len(odd)} of its {what} differ, for example "
            f"{first} is {shapes[0]}, not {shapes[1]}."
        )
