"""Checkpoints of a training run: trained tensors, optimiser state and position, written whole or not at all.

One process, DDP and ZeRO-1 and 2 write every tensor whole, into one file. Where the strategy shards the weights (FSDP2,
ZeRO-3) each rank writes what it holds into files of its own (`lrc/models/stored_tensors.py`). Either is read by any
strategy on any number of ranks, and by `lrc convert`.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file

from lrc.data.file_hash import file_sha256
from lrc.data.folder_hash import write_sums
from lrc.errors import CheckpointError
from lrc.models.checkpoint import LRC_CONFIG, TRAINED_TENSORS
from lrc.models.set_aside import REPLACED, set_aside
from lrc.models.stored_tensors import PIECES, Piece, StoredTensors, piece_name, stored_files
from lrc.training.run_state import RunState
from lrc.training.together import by_first, together

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a rank writes of a checkpoint, on the CPU."""

    weights: Mapping[str, Piece]
    """Trained tensors, and fixed ones beside them, by checkpoint name, float32."""
    moments: Mapping[str, Piece]
    """The optimiser's state as `KEY/NAME`: what `lrc/models/moments.py:moment_shapes` lists."""
    is_sharded: bool
    """Every rank writes; otherwise the first one does, and all tensors are whole."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds; tensors are read when asked for."""

    weights: StoredTensors
    moments: StoredTensors
    state: RunState


def save_checkpoint(folder: Path, held: Held, state: RunState, facts: dict[str, Any], accelerator: Accelerator) -> Path:
    """Write `folder/checkpoint-STEP` beside and rename it into place; all ranks must call it, and wait for all.

    Args:
        folder: The verb's folder; all ranks see it.
        held: This rank's tensors.
        state: Where the run stands.
        facts: Content of `lrc_config.json`.
        accelerator: Knows the ranks.

    Raises:
        CheckpointError: On every rank. The disk is full or not writable; nothing that existed is touched.
    """
    target = folder / f"checkpoint-{state.step}"
    draft = folder / f".{target.name}.partial"
    rank, ranks = accelerator.process_index, accelerator.num_processes

    def write() -> dict[str, str]:
        if held.is_sharded:
            names = [piece_name(name, rank, ranks) for name in (TRAINED_TENSORS, OPTIMIZER)]
        elif accelerator.is_main_process:
            names = [TRAINED_TENSORS, OPTIMIZER]
        else:
            return {}
        return _write_tensors(draft, dict(zip(names, (held.weights, held.moments), strict=True)))

    what = f"The checkpoint {target}"
    try:
        by_first(accelerator, explained(what, lambda: _make_draft(draft)))
        sums = together(accelerator, explained(what, write))
        known = {name: digest for part in sums for name, digest in part.items()}
        by_first(accelerator, explained(what, lambda: _publish(draft, target, state, facts, known)))
    except CheckpointError:
        if accelerator.is_main_process:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    return target


def explained(what: str, action: Callable[[], Any]) -> Callable[[], Any]:
    """Make an action's errors of the file system a CheckpointError about `what`."""

    def act() -> Any:
        try:
            return action()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(write_failure(what, error)) from error

    return act


def _make_draft(draft: Path) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)


def _write_tensors(draft: Path, files: dict[str, Mapping[str, Piece]]) -> dict[str, str]:
    """Write files of tensors down to the disk; returns the SHA-256 of each."""
    if not draft.is_dir():
        raise CheckpointError(
            f"This process finds no {draft}, which the first one has made: where the weights are sharded, run must "
            "name a folder that all machines share."
        )
    sums = {}
    for name, pieces in files.items():
        path = draft / name
        places = {key: (piece.start, list(piece.shape)) for key, piece in pieces.items() if not piece.is_whole}
        # one key, since safetensors writes several in any order, and the same tensors are to be the same bytes
        metadata = {PIECES: json.dumps(places)} if places else {"format": "pt"}
        save_file({key: piece.values for key, piece in pieces.items()}, path, metadata=metadata)
        path.chmod(0o644)  # safetensors lets nobody but the owner read
        _flush(path)
        sums[name] = file_sha256(path)
    return sums


def _publish(draft: Path, target: Path, state: RunState, facts: dict[str, Any], known: dict[str, str]) -> None:
    """Write what is beside the tensors, whose sums are known, and give the draft its name."""
    small = {LRC_CONFIG: json.dumps(facts, indent=2) + "\n", STATE: state.to_json()}
    for name, text in small.items():
        (draft / name).write_text(text)
    write_sums(draft, known)
    for path in (*(path for path in draft.iterdir() if path.name not in known), draft):
        _flush(path)
    _take_place(draft, target)


def _take_place(draft: Path, target: Path) -> None:
    """Give a draft its name; an old checkpoint of that name stays one until then."""
    replaced = set_aside(target)
    try:
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)  # after a kill here it still counts as the checkpoint
        draft.rename(target)
        _flush(target.parent)
        if replaced.exists():
            shutil.rmtree(replaced)
    except OSError:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise


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
    """Bring a file or a folder's names down to the disk; some file systems can't do so for a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_checkpoint(folder: Path, shapes: dict[str, torch.Size], moment_shapes: dict[str, torch.Size]) -> Saved:
    """Open a checkpoint; its tensors come bit for bit as they were written, and only those that are asked for.

    Whether a file was damaged since is `lrc/training/checkpoint_list.py:find_resume`'s to say, which reads all of them.

    Args:
        folder: `checkpoint-N`.
        shapes: The run's tensors by name, trained and fixed.
        moment_shapes: What the run's optimiser remembers, by name in the checkpoint.

    Raises:
        CheckpointError: A file is missing or can't be read, or holds other tensors than the run has.
    """
    weights, moments = (StoredTensors(_files(folder, name)) for name in (TRAINED_TENSORS, OPTIMIZER))
    _check_tensors(folder, shapes, weights.shapes, "trained tensors")
    _check_tensors(folder, moment_shapes, moments.shapes, "optimiser state")
    return Saved(weights=weights, moments=moments, state=read_state(folder))


def _files(folder: Path, name: str) -> list[Path]:
    found = stored_files(folder, name)
    if not found:
        raise CheckpointError(f"The checkpoint {folder} has no {name}, whole or in pieces. Resume from another one.")
    return found


def read_state(folder: Path) -> RunState:
    """Read where the run of a checkpoint stood.

    Raises:
        CheckpointError: `state.json` can't be read.
    """
    try:
        return RunState.from_json((folder / STATE).read_text())
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE} can't be read: {error}. Resume from another checkpoint.") from error


def _check_tensors(folder: Path, wanted: dict[str, torch.Size], found: dict[str, torch.Size], what: str) -> None:
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if odd:
        first = odd[0]
        shapes = [list(side[first]) if first in side else "missing" for side in (found, wanted)]
        raise CheckpointError(
            f"The checkpoint {folder} belongs to another student: {len(odd)} of its {what} differ, for example "
            f"{first} is {shapes[0]}, not {shapes[1]}."
        )
