"""Start values in a file, so that runs which begin alike compute them once (`keep_start` of `lrc/verbs/train.py`).

The file holds the tensors of a checkpoint by its names; its metadata the start's report and the compute dtype.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrc.errors import CheckpointError
from lrc.models.compute import dtype_name
from lrc.models.pair_model import PairModel
from lrc.models.start import StartReport
from lrc.training.checkpoint import write_failure
from lrc.verbs.progress import say

SHOWN = 3
"""Tensors that an error names."""


def kept_or_new(path: Path | None, pair: PairModel, make: Callable[[], StartReport]) -> StartReport:
    """Fill a pair from the file, or make the start and write it there.

    Args:
        path: The file; None: nothing is read or written.
        pair: The pair to fill.
        make: Fills it, if the file is not there.

    Raises:
        CheckpointError: The file is of another pair, damaged, or can't be written.
    """
    if path is None:
        return make()
    if path.is_file():
        report = read_start(path, pair)
        say(f"start: {report.method}, read from {path}")
        return report
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(write_failure(str(path), error)) from error
    report = make()
    write_start(path, pair, report)
    return report


@torch.no_grad()
def read_start(path: Path, pair: PairModel) -> StartReport:
    """Fill a pair with kept start values; returns the report of the run that computed them.

    Raises:
        CheckpointError: Names, shapes or dtypes are not those of the pair's tensors, the start was computed in
            another compute dtype, or the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            report = StartReport(**json.loads(metadata["report"]))
            compute_dtype = metadata["compute_dtype"]
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} must hold kept start values, but can't be read: {error}. Delete it; the start is computed anew."
        ) from error
    wanted = {name: parameter.data for name, parameter in pair.stored().items()}
    problems = _differences(values, wanted)
    if compute_dtype != dtype_name(pair.compute_dtype):
        problems.append(f"computed in {compute_dtype}, the run computes in {dtype_name(pair.compute_dtype)}")
    if problems:
        raise CheckpointError(
            f"{path} must hold the start of this run's pair, but does not fit: {'; '.join(problems)}. Name another "
            "file, or delete this one; the start is computed anew."
        )
    for name, value in wanted.items():
        value.copy_(values[name])
    return report


def write_start(path: Path, pair: PairModel, report: StartReport) -> None:
    """Write a filled pair's values and the report, whole or not at all; two processes may do so at once.

    Raises:
        CheckpointError: The disk is full or not writable.
    """
    values = {name: parameter.detach().contiguous() for name, parameter in pair.stored().items()}
    metadata = {"report": json.dumps(asdict(report)), "compute_dtype": dtype_name(pair.compute_dtype)}
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(values, draft, metadata=metadata)
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(write_failure(str(path), error)) from error


def _differences(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Return a line for the first tensors that are missing, unknown or of another shape or dtype."""
    names = sorted(found.keys() | wanted.keys())
    lines = [
        f"{name} is {_described(found.get(name))} there, {_described(wanted.get(name))} in the pair"
        for name in names
        if _described(found.get(name)) != _described(wanted.get(name))
    ]
    return [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])]


def _described(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
