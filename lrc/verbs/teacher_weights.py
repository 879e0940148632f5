"""The teacher of `lrc train`: loaded, and held as the recipe's `teacher_weights` says (docs/scale.md)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrc.clone.sites import Correction
from lrc.config import Recipe
from lrc.errors import ConfigError
from lrc.models.compute import choose_dtype, dtype_name
from lrc.models.discovery import Architecture, discover
from lrc.models.folder import weight_files
from lrc.models.held_teacher import held_bytes, held_matrices_of, hold_teacher
from lrc.models.teacher import load_model
from lrc.training.strategy import SHARING, choose_strategy

WHOLE_SHARE = 1.5
"""What a device must have free to hold a teacher whole, times its bytes: projections and the start's work beside it."""
CORRECTED_SHARES: dict[Correction, float] = {"none": WHOLE_SHARE, "outputs": 2.5, "mlp": 3.2}
"""The same with corrections: their own bytes, and the sums of one MLP's regression, its inner width squared
(docs/method.md, 8.10)."""


def check_teacher_weights(recipe: Recipe, config: Any, architecture: Architecture) -> None:
    """Check that the teacher can be held as the recipe says, before anything is loaded.

    Raises:
        ConfigError: The strategy shares out what is to stay in main memory, or the teacher holds stacked experts.
    """
    if not recipe.teacher_weights.is_held:
        return
    strategy = choose_strategy(recipe.train, os.environ)
    if recipe.teacher_weights.offload == "cpu" and strategy in SHARING:
        raise ConfigError(
            "teacher_weights.offload=cpu keeps the teacher's matrices whole in the main memory of every process, found "
            f"the strategy {strategy}, which shares them out over the devices. Leave offload at none (format=int8 or "
            "nf4 makes the shares smaller), or take ddp, zero1 or zero2."
        )
    if recipe.method != "clone" or recipe.phases.dense_share > 0:
        raise ConfigError(
            "teacher_weights holds a teacher that is merged to the end: free weights would start from its rounded "
            f"matrices. Found method={recipe.method}, phases.dense_share={recipe.phases.dense_share:g}. Leave "
            "teacher_weights at format=native, offload=none."
        )
    held_matrices_of(config, architecture)


def first_place(
    num_bytes: int, strategy: str, device: torch.device, *, correction: Correction = "none"
) -> torch.device:
    """Return where a teacher is put first: its device, or main memory if FSDP2 is to shard it and it is too large.

    Args:
        num_bytes: The teacher's, as it is held.
        strategy: As `train.strategy`.
        device: This process's.
        correction: What the start fits corrections of.
    """
    if strategy != "fsdp2" or device.type != "cuda":
        return device
    share = CORRECTED_SHARES[correction]
    return device if share * num_bytes <= torch.cuda.mem_get_info(device)[0] else torch.device("cpu")


def load_teacher(
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
    *,
    dtype: torch.dtype | None = None,
    strategy: str = "ddp",
) -> nn.Module:
    """Load the teacher frozen onto a device, its matrices held as the recipe says.

    A held teacher is loaded into main memory first, so that the device never has it whole.

    Args:
        recipe: The run; was checked.
        folder: The teacher's.
        device: Where it runs.
        say: Receives a line.
        dtype: What it computes in, where ranks have agreed; None: as the recipe says.
        strategy: As `train.strategy`; FSDP2 moves a teacher that is too large for the device there part by part.
    """
    settings = recipe.teacher_weights
    dtype = choose_dtype(recipe.train.compute_dtype, device) if dtype is None else dtype
    trust = recipe.trust_remote_code
    line = f"teacher {recipe.teacher} on {device} in {dtype_name(dtype)}"
    waits = ", first in main memory: whole it would not fit beside its projections"
    if not settings.is_held:
        size = sum(path.stat().st_size for path in weight_files(folder))
        place = first_place(size, strategy, device, correction=recipe.student.correction)
        say(line if place == device else f"{line}{waits}")
        return load_model(str(folder), dtype=dtype, device=place, trust_remote_code=trust)
    teacher = load_model(str(folder), dtype=dtype, device=torch.device("cpu"), trust_remote_code=trust)
    architecture = discover(teacher.config)
    size = held_bytes(teacher, architecture, settings)
    place = first_place(size, strategy, device, correction=recipe.student.correction)
    store = hold_teacher(teacher, architecture, settings, place)
    where = ", in main memory" if store.is_offloaded else ""
    held = f"its layers' matrices in {settings.format}{where}: {store.num_bytes / 1e9:.3g} GB"
    say(f"{line}, {held}" if place == device else f"{line}, {held}{waits}")
    if settings.offload == "cpu" and not store.is_offloaded:
        say("note: teacher_weights.offload=cpu changes nothing without a GPU: the teacher is in main memory already")
    return teacher
