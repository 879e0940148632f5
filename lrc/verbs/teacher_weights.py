"""The teacher of `lrc train`: loaded, and held as the recipe's `teacher_weights` says (docs/scale.md)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrc.config import Recipe
from lrc.errors import ConfigError
from lrc.models.compute import choose_dtype, dtype_name
from lrc.models.discovery import Architecture, discover
from lrc.models.folder import weight_files
from lrc.models.held_teacher import held_matrices_of, hold_teacher
from lrc.models.teacher import load_model
from lrc.training.strategy import choose_strategy

WHOLE_SHARE = 1.5
"""What a device must have free to hold a teacher whole, times its files: projections and the start's work beside it."""


def check_teacher_weights(recipe: Recipe, config: Any, architecture: Architecture) -> None:
    """Check that the teacher can be held as the recipe says, before anything is loaded.

    Raises:
        ConfigError: The strategy shards weights or their state, or the teacher holds stacked experts.
    """
    if not recipe.teacher_weights.is_held:
        return
    strategy = choose_strategy(recipe.train, os.environ)
    if strategy != "ddp":
        raise ConfigError(
            "teacher_weights needs the whole teacher on every process (one process, or train.strategy=ddp), found the "
            f"strategy {strategy}. Leave teacher_weights at format=native, offload=none, or take ddp."
        )
    if recipe.method != "clone" or recipe.phases.dense_share > 0:
        raise ConfigError(
            "teacher_weights holds a teacher that is merged to the end: free weights would start from its rounded "
            f"matrices. Found method={recipe.method}, phases.dense_share={recipe.phases.dense_share:g}. Leave "
            "teacher_weights at format=native, offload=none."
        )
    held_matrices_of(config, architecture)


def first_place(folder: Path, strategy: str, device: torch.device) -> torch.device:
    """Return where a teacher is put first: its device, or main memory if FSDP2 is to shard it and it is too large.

    Args:
        folder: The teacher's, with its weights.
        strategy: As `train.strategy`.
        device: This process's.
    """
    if strategy != "fsdp2" or device.type != "cuda":
        return device
    needed = WHOLE_SHARE * sum(path.stat().st_size for path in weight_files(folder))
    return device if needed <= torch.cuda.mem_get_info(device)[0] else torch.device("cpu")


def load_teacher(
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
    *,
    place: torch.device | None = None,
) -> nn.Module:
    """Load the teacher frozen onto a device, its matrices held as the recipe says.

    A held teacher is loaded into main memory first, so that the device never has it whole.

    Args:
        recipe: The run; was checked.
        folder: The teacher's.
        device: Where it runs.
        say: Receives a line.
        place: Where it is put first, if not on its device; a strategy moves it part by part.
    """
    settings = recipe.teacher_weights
    dtype = choose_dtype(recipe.train.compute_dtype, device)
    trust = recipe.trust_remote_code
    line = f"teacher {recipe.teacher} on {device} in {dtype_name(dtype)}"
    if not settings.is_held:
        place = place or device
        say(line if place == device else f"{line}, first in main memory: whole it would not fit beside its projections")
        return load_model(str(folder), dtype=dtype, device=place, trust_remote_code=trust)
    teacher = load_model(str(folder), dtype=dtype, device=torch.device("cpu"), trust_remote_code=trust)
    store = hold_teacher(teacher, discover(teacher.config), settings, device)
    where = ", in main memory" if store.is_offloaded else ""
    say(f"{line}, its layers' matrices in {settings.format}{where}: {store.num_bytes / 1e9:.3g} GB")
    if settings.offload == "cpu" and not store.is_offloaded:
        say("note: teacher_weights.offload=cpu changes nothing without a GPU: the teacher is in main memory already")
    return teacher
