"""Checkpoints of a training run: trained tensors, optimiser state and position, written whole or not at all."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lrc.errors import CheckpointError
from lrc.models.checkpoint import LRC_CONFIG, TRAINED_TENSORS
from lrc.training.optimizer import state_shapes

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
_NAME = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands."""

    step: int
    """Optimiser steps done."""
    tokens: int
    """Training tokens seen, padding left out."""
    seconds: float
    """Time spent training, over all sittings."""


def save_checkpoint(
    folder: Path,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: RunState,
    facts: dict[str, Any],
) -> Path:
    """Write `folder/checkpoint-STEP` beside and rename it into place.

    Args:
        folder: The verb's folder.
        trained: Trained tensors by checkpoint name.
        optimizer: The optimiser over these tensors.
        state: Position.
        facts: Content of `lrc_config.json`.

    Raises:
        CheckpointError: The disk is full or not writable; nothing that existed is touched.
    """
    target = folder / f"checkpoint-{state.step}"
    draft = folder / f".{target.name}.partial"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        weights = {name: parameter.detach().cpu().contiguous() for name, parameter in trained.items()}
        save_file(weights, draft / TRAINED_TENSORS, metadata={"format": "pt"})
        save_file(_optimizer_tensors(trained, optimizer), draft / OPTIMIZER)
        (draft / LRC_CONFIG).write_text(json.dumps(facts, indent=2) + "\n")
        (draft / STATE).write_text(json.dumps(vars(state), indent=2) + "\n")
        for path in draft.iterdir():
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(_write_failure(target, error)) from error
    return target


def _write_failure(target: Path, error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    full = full or "os error 28" in str(error) or "os error 27" in str(error)
    reason = "the disk is full" if full else str(error)
    return (
        f"The checkpoint {target} can't be written: {reason}. Earlier checkpoints are untouched; free some space or "
        "fix the folder, then go on with --resume auto."
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _optimizer_tensors(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in trained.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def load_checkpoint(folder: Path, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> RunState:
    """Fill trained tensors and optimiser state from a checkpoint, bit for bit.

    Raises:
        CheckpointError: A file is missing or damaged, or holds other tensors than the run has.
    """
    try:
        weights = load_file(folder / TRAINED_TENSORS)
        moments = load_file(folder / OPTIMIZER)
        state = RunState(**json.loads((folder / STATE).read_text()))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {folder} can't be read: {error}. Resume from another one.") from error
    if set(weights) != set(trained):
        odd = sorted(set(weights) ^ set(trained))
        raise CheckpointError(
            f"The checkpoint {folder} belongs to another student: {len(odd)} tensors differ, for example {odd[0]}."
        )
    for name, parameter in trained.items():
        if weights[name].shape != parameter.shape:
            raise CheckpointError(
                f"The checkpoint {folder} belongs to another student: {name} is {list(weights[name].shape)}, "
                f"not {list(parameter.shape)}."
            )
    shapes = {name: state_shapes(optimizer, parameter) for name, parameter in trained.items()}
    _check_moments(folder, shapes, moments)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
            # step counts stay on the CPU, what has axes lies beside the parameter
            optimizer.state[parameter] = {
                key: moments[f"{key}/{name}"].to(parameter.device if shape else "cpu")
                for key, shape in shapes[name].items()
            }
    return state


def _check_moments(folder: Path, shapes: dict[str, dict[str, torch.Size]], moments: dict[str, Tensor]) -> None:
    wanted = {f"{key}/{name}": shape for name, state in shapes.items() for key, shape in state.items()}
    found = {name: tensor.shape for name, tensor in moments.items()}
    if found != wanted:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"The checkpoint {folder} holds another optimiser state than the run has: {len(odd)} tensors differ, for "
            f"example {odd[0]}. Resume from another one."
        )


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first; half-written ones have another name."""
    found = [path for path in folder.glob("checkpoint-*") if _NAME.match(path.name) and (path / STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def find_resume(folder: Path, resume: str) -> Path | None:
    """Resolve `--resume`: `auto` is the newest complete checkpoint (None if there is none), else a folder.

    Raises:
        CheckpointError: The named folder is no checkpoint.
    """
    if resume == "auto":
        return next(reversed(checkpoints(folder)), None)
    path = Path(resume)
    if not (path / STATE).is_file():
        raise CheckpointError(f"--resume must name a checkpoint folder or be 'auto', but {path} has no {STATE}.")
    return path


def discard_after(folder: Path, step: int) -> None:
    """Delete a run's checkpoints after `step`, which a run that goes on from there will write anew."""
    for path in checkpoints(folder):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)


def rotate(folder: Path, keep: int | None, remove: Callable[[Path], None] = shutil.rmtree) -> None:
    """Delete all but the newest `keep` checkpoints."""
    if keep is not None:
        for path in checkpoints(folder)[:-keep]:
            remove(path)
