"""What stands around the loop: the accelerator, and checks that the run's folder can hold what it will write."""

import os
import shutil
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from lrc.config import Recipe, TrainConfig, recipe_to_dict
from lrc.errors import CheckpointError, ConfigError
from lrc.models.pair_model import PairModel
from lrc.training.beside import write_beside


def check_trackers(settings: TrainConfig) -> None:
    """Check that accelerate knows the recipe's trackers and finds them installed.

    Raises:
        ConfigError: One is unknown or not installed.
    """
    unknown = set(settings.trackers) - {str(name) for name in LoggerType.list()}
    missing = [name for name in settings.trackers if name not in unknown and not _is_installed(name)]
    if unknown or missing:
        what = f"knows no {sorted(unknown)[0]}" if unknown else f"finds no {missing[0]} installed"
        raise ConfigError(f"train.trackers = {list(settings.trackers)} can't be used: accelerate {what}.")


def _is_installed(tracker: str) -> bool:
    return tracker in {str(found) for found in get_available_trackers()}


def make_accelerator(settings: TrainConfig, folder: Path, device: torch.device) -> Accelerator:
    """Make the accelerator and check that it sees the processes that were launched; writes nothing yet.

    Raises:
        ConfigError: The launcher started several processes but they would train independently, or a tracker is
            unknown or not installed.
    """
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",  # the pair computes in its own dtype and keeps trained tensors in float32
            log_with=list(settings.trackers) or None,
            project_dir=str(folder) if settings.trackers else None,
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"train.trackers = {list(settings.trackers)} can't be used: {error}") from error
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched but accelerate joins {accelerator.num_processes}: each would train "
            "alone. On a CPU use torchrun, or accelerate launch --multi_gpu with ACCELERATE_USE_CPU=true."
        )
    return accelerator


def start_trackers(accelerator: Accelerator, settings: TrainConfig) -> None:
    """Open the recipe's trackers; tensorboard writes below the run's folder, so the folder must stand."""
    if settings.trackers:
        accelerator.init_trackers("lrc", config={"tags": ",".join(settings.tags)})


def check_space(folder: Path, pair: PairModel, *, keep: int | None) -> None:
    """Check that the disk holds the run's checkpoints, before the expensive part.

    Raises:
        CheckpointError: It does not.
    """
    trained = sum(parameter.numel() for parameter in pair.trained().values()) * 4
    needed = 3 * trained * ((keep or 2) + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} must have room for {needed / 1e9:.1f} GB of checkpoints, found {free / 1e9:.1f} GB. Free some "
            "space, lower train.save_total_limit, or name another run folder."
        )


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the resolved recipe; `load_recipe` reads it back to an equal one."""
    write_beside(path, yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False))
