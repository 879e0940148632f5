"""The start of `lrc train`: values from calibration text or from the student's own class, measured and written down."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrc.config import Recipe
from lrc.data.block import Block
from lrc.data.blocks import Blocks, collate
from lrc.errors import CheckpointError, DataError
from lrc.evaluation.held_out import HeldOutText
from lrc.models.checkpoint import versions
from lrc.models.pair import PairLayer
from lrc.models.pair_model import PairModel
from lrc.models.scratch import fill_scratch
from lrc.models.start import StartReport, fill_start
from lrc.training.beside import write_beside
from lrc.training.checkpoint import write_failure
from lrc.training.launch_environment import launched_rank, num_launched
from lrc.training.metrics import MetricsLog
from lrc.verbs.progress import progress_lines, say

CALIBRATION_BATCH = 2
SEARCHED = 8
"""Times `start.tokens`: tokens at the front of the data that are searched for full rows, at most."""
FEW_TOKENS = 10
"""Calibration tokens an input of a correction, below which a start says that they are few: of eleven it was better for
corrections, fewer were not measured (docs/quality.md)."""


def fill(pair: PairModel, teacher: nn.Module, recipe: Recipe, calibration: list[Tensor]) -> StartReport:
    """Fill the start values; writes nothing.

    Args:
        pair: The pair to fill.
        teacher: The model that the pair was made from.
        recipe: The run.
        calibration: Ids, `[batch, seq]` each; none for a random start.

    Raises:
        ConfigError: The start can't follow this teacher.
    """
    with ExitStack() as bars, all_cores(pair):
        shown: dict[str, Callable[[int, int], None]] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                unit = "layers" if stage == "calibrate" else "batches"
                shown[stage] = bars.enter_context(progress_lines(f"start: {stage}", unit))
            shown[stage](done, total)

        seed = recipe.train.seed
        if recipe.method == "clone":
            report = fill_start(pair, teacher, recipe.start, calibration, seed=seed, progress=progress)
        else:
            fill_scratch(pair, seed=seed)
            report = StartReport(method="scratch", tokens=0, seconds=0.0)
    if pair.variant.correction != "none":
        say(f"start: {corrected_in_words(pair, report.tokens)}")
    for line in report.kept:
        say(f"start: not calibrated, kept at its pca start: {line}")
    if report.unrotated is not None:
        say(f"start: channels not rotated: {report.unrotated}")
    return report


def corrected_in_words(pair: PairModel, tokens: int) -> str:
    """Say how many layers a start has corrected, and whether its tokens were few for that."""
    fitted, tuned = (sum(_has_corrections(layer, axes) for layer in pair.layers) for axes in ((0, 1), (1,)))
    widest = max(layer.correction(name).shape[1] for layer in pair.layers for name in layer.plan.corrections)
    few = tokens < FEW_TOKENS * widest
    note = f"; {tokens:,} calibration tokens are few for fits of {widest:,} inputs, raise start.tokens" if few else ""
    whole = f", of whole MLPs in {tuned}" if pair.variant.correction == "mlp" else ""
    return f"corrections in {fitted} of {len(pair.layers)} layers{whole}{note}"


def _has_corrections(layer: PairLayer, axes: tuple[int, ...]) -> bool:
    """Whether a layer has a correction other than zero of a weight with one of these hidden axes: readers have 1."""
    names = (name for name in layer.plan.corrections if layer.plan.merges[name][1] in axes)
    return any(bool(layer.correction(name).any()) for name in names)


@contextmanager
def all_cores(pair: PairModel) -> Iterator[None]:
    """Let one process that computes on the CPU, while the others of a GPU run wait for it, use every core.

    Launchers of several processes give each of them one thread.
    """
    on_cpu = next(pair.parameters()).device.type == "cpu"
    if not (on_cpu and torch.cuda.is_available() and num_launched(os.environ) > 1):
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure_start(
    pair: PairModel, report: StartReport, held_out: HeldOutText | None, log: MetricsLog, folder: Path
) -> None:
    """Measure the filled pair, and write `start.json` into the verb's folder."""
    measured = None
    if held_out is not None:
        pair.eval()
        with all_cores(pair):
            measured = held_out.measure(0)
        pair.train()
        log.write("held_out", {"step": 0, "tokens": 0, "seconds": 0.0, **measured})
    _write_start(folder / "start.json", report, measured)


def _write_start(path: Path, report: StartReport, held_out: dict[str, Any] | None) -> None:
    facts = {
        "method": report.method,
        "calibration_tokens": report.tokens,
        "seconds": report.seconds,
        "layer_errors": report.layer_errors,
        "kept_at_pca": report.kept,
        "unrotated": report.unrotated,
        "held_out": held_out,
        "effective_rank": None if held_out is None else held_out["effective_rank"],
        "versions": versions(),
    }
    try:
        write_beside(path, json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(write_failure(str(path), error)) from error


def calibration_batches(recipe: Recipe, blocks: Blocks) -> list[Tensor]:
    """Take full blocks from the front of the training data, in equal batches; none if the start needs none.

    Raises:
        DataError: There are none.
    """
    if recipe.start.method == "random" or recipe.method != "clone":
        return []
    length, asked = recipe.data.sequence_length, recipe.start.tokens
    if asked < CALIBRATION_BATCH * length:
        raise DataError(
            f"start.tokens must be at least {CALIBRATION_BATCH} rows of data.sequence_length = {length}, found "
            f"{asked}. Raise it or lower data.sequence_length."
        )
    rows, searched = _full_rows(blocks, tokens=asked, length=length)
    used = len(rows) - len(rows) % CALIBRATION_BATCH
    if used == 0:
        raise DataError(
            f"The {recipe.start.method} start needs {CALIBRATION_BATCH} rows of data.sequence_length = {length} "
            f"tokens, but the first {searched:,} tokens of {recipe.data.train} have {len(rows)}. Pack the data, or "
            "lower data.sequence_length."
        )
    if len(rows) * length < asked and launched_rank(os.environ) == 0:
        say(
            f"start: {used * length:,} calibration tokens, fewer than start.tokens = {asked:,}: the first "
            f"{searched:,} tokens of {recipe.data.train} have no more rows of data.sequence_length = {length}"
        )
    return [collate(rows[first : first + CALIBRATION_BATCH]).input_ids for first in range(0, used, CALIBRATION_BATCH)]


def _full_rows(blocks: Blocks, *, tokens: int, length: int) -> tuple[list[Block], int]:
    """Collect rows of `length` ids from the front until they hold `tokens`; also returns how many tokens were read.

    The search ends with the data, or after `SEARCHED` times as many tokens.
    """
    rows: list[Block] = []
    searched = 0
    for index in range(len(blocks)):
        if len(rows) * length >= tokens or searched >= SEARCHED * tokens:
            break
        block = blocks.read(index)
        searched += len(block.ids)
        if len(block.ids) == length:
            rows.append(block)
    return rows, searched
