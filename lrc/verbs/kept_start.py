"""Start values in a file: runs that begin alike compute them once, and one that is killed early finds its own again.

The former is `keep_start` of `lrc/verbs/train.py`, a file that the caller names. The latter lies in the run's folder
from the end of the start to the first checkpoint, and counts for a run with the same facts alone.

A file holds the tensors of a checkpoint by its names; its metadata the start's report, the compute dtype and the facts.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lrc.config import Recipe, recipe_to_dict
from lrc.errors import CheckpointError
from lrc.models.checkpoint import versions
from lrc.models.compute import dtype_name
from lrc.models.pair_model import PairModel
from lrc.models.start import StartReport
from lrc.training.checkpoint import write_failure
from lrc.training.checkpoint_list import BEGUN
from lrc.verbs.progress import say

SHOWN = 3
"""Tensors that an error names."""


@dataclass(frozen=True)
class KeptStart:
    """A run's start beside its run: in the file that the caller names, else in the run's folder."""

    named: Path | None
    """The caller's, or None."""
    folder: Path
    """The run's."""
    recipe: Recipe
    teacher_hash: str
    calibration: list[Tensor]
    """Token ids that the start reads, `[batch, seq]` each; without them it takes no time, and nothing is kept."""

    def fill(self, pair: PairModel, make: Callable[[], StartReport], *, reads: bool) -> StartReport:
        """Fill a pair from the file, or make the start; the named file is written at once.

        Args:
            pair: The pair to fill.
            make: Fills it, if there is nothing to read.
            reads: Whether what a killed run left in the folder counts; a named file always does.

        Raises:
            CheckpointError: The named file is of another pair, damaged, or can't be written.
        """
        if self.named is None:
            report = self._left(pair) if reads and self.calibration else None
            return make() if report is None else report
        if self.named.is_file():
            report = read_start(self.named, pair)
            say(f"start: {report.method}, read from {self.named}")
            return report
        try:
            self.named.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(write_failure(str(self.named), error)) from error
        report = make()
        write_start(self.named, pair, report)
        return report

    def keep(self, pair: PairModel, report: StartReport) -> None:
        """Leave the start in the run's folder till the first checkpoint; without room for it the run goes on."""
        if self.named is not None or not self.calibration:
            return
        try:
            write_start(self.folder / BEGUN, pair, report, self.facts())
        except CheckpointError as error:
            say(f"note: the start is not kept, so that a kill before the first checkpoint loses it: {error}")

    def facts(self) -> dict[str, Any]:
        """Return what the start follows from: teacher, student, settings, seed, the very ids, and versions."""
        ids = hashlib.sha256()
        for batch in self.calibration:
            ids.update(str(list(batch.shape)).encode() + batch.numpy().tobytes())
        own = {"teacher": self.teacher_hash, "ids": ids.hexdigest(), "versions": versions()}
        found: dict[str, Any] = json.loads(json.dumps(start_settings(self.recipe) | own))
        return found

    def _left(self, pair: PairModel) -> StartReport | None:
        """Fill a pair with what a killed run of the same facts left; None if there is no such file."""
        path = self.folder / BEGUN
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
            report = read_start(path, pair) if facts == self.facts() else None
        except (OSError, SafetensorError, KeyError, ValueError, CheckpointError):
            return None  # a damaged one, or one in another dtype, costs time alone
        if report is not None:
            say(f"start: {report.method}, as it was computed before this run was cut short")
        return report


def start_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe its start follows from, beside the teacher and the text."""
    values = recipe_to_dict(recipe)
    settings = {key: values[key] for key in ("method", "student", "start", "teacher_weights")}
    return {**settings, "seed": recipe.train.seed}


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


def write_start(path: Path, pair: PairModel, report: StartReport, facts: Mapping[str, Any] | None = None) -> None:
    """Write a filled pair's values, the report and facts, whole or not at all; two processes may do so at once.

    Raises:
        CheckpointError: The disk is full or not writable.
    """
    values = {name: parameter.detach().contiguous() for name, parameter in pair.stored().items()}
    metadata = {"report": json.dumps(asdict(report)), "compute_dtype": dtype_name(pair.compute_dtype)}
    if facts is not None:
        metadata["facts"] = json.dumps(facts)
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
