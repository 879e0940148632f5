"""What stands around the loop: the accelerator, and checks that the run's folder can hold what it will write."""

import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType

from lrc.config import Recipe, TrainConfig, recipe_to_yaml
from lrc.errors import CheckpointError, ConfigError
from lrc.models.dense import Dense
from lrc.models.moments import checkpoint_bytes
from lrc.models.pair_model import PairModel
from lrc.training.beside import write_beside
from lrc.training.checkpoint_list import checkpoints
from lrc.training.engine import Engine, FullEngine, share_stored
from lrc.training.sharded import ShardedEngine
from lrc.training.strategy import ZERO_STAGES, make_distributed
from lrc.training.zero import ZeroEngine

LONGEST_WAIT = 30.0
"""Seconds that a rank waits for the threads of gloo before it leaves."""
IDLE_LOOKS = 3
"""Looks in a row that find them idle: one that waits for Python's lock looks idle while the lock is held to look."""


def check_trackers(settings: TrainConfig) -> None:
    """Check that accelerate knows the recipe's trackers and finds them installed.

    Raises:
        ConfigError: One is unknown or not installed.
    """
    unknown = set(settings.trackers) - {str(name) for name in LoggerType.list()}
    missing = [name for name in settings.trackers if name not in unknown and not _is_installed(name)]
    if unknown or missing:
        what = f"knows no {sorted(unknown)[0]}" if unknown else f"finds no {missing[0]} installed"
        remedy = "" if unknown else f" Install it: pip install {missing[0]}; lrc's extra `trackers` has the usual ones."
        raise ConfigError(f"train.trackers = {list(settings.trackers)} can't be used: accelerate {what}.{remedy}")


def _is_installed(tracker: str) -> bool:
    return tracker in {str(found) for found in get_available_trackers()}


def make_accelerator(
    settings: TrainConfig, folder: Path, device: torch.device, *, strategy: str = "ddp"
) -> Accelerator:
    """Make the accelerator and check that it sees the processes that were launched; writes nothing yet.

    Args:
        settings: The recipe's section.
        folder: Where trackers may write later.
        device: Where to run.
        strategy: From `choose_strategy`.

    Raises:
        ConfigError: The launcher started several processes but they would train independently, or a tracker is
            unknown or not installed.
    """
    try:
        return make_distributed(
            strategy,
            device,
            {
                "mixed_precision": "no",  # the pair computes in its own dtype and keeps trained tensors in float32
                "log_with": list(settings.trackers) or None,
                "project_dir": str(folder) if settings.trackers else None,
                # after an exchange gradients lie in DDP's buckets, not in a second copy beside them
                "kwargs_handlers": [DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            },
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"train.trackers = {list(settings.trackers)} can't be used: {error}") from error


def make_engine(
    accelerator: Accelerator,
    pair: PairModel,
    settings: TrainConfig,
    *,
    strategy: str,
    accumulation: int,
    dense_rate_share: float = 1.0,
) -> Engine:
    """Hand a filled pair over to what trains it; the first process's tensors go to all."""
    if strategy == "fsdp2":  # shares them out itself, part by part
        return ShardedEngine(accelerator, pair, settings, accumulation=accumulation, dense_rate_share=dense_rate_share)
    share_stored(pair.stored().values())
    if strategy in ZERO_STAGES:
        return ZeroEngine(accelerator, pair, settings, accumulation=accumulation)
    return FullEngine(accelerator, pair, settings, accumulation=accumulation, dense_rate_share=dense_rate_share)


def trackers_need_folder(settings: TrainConfig) -> bool:
    """Whether one of the recipe's trackers writes below the run's folder, so that the folder must stand first."""
    return any(LOGGER_TYPE_TO_CLASS[name].requires_logging_directory for name in settings.trackers)


def start_trackers(accelerator: Accelerator, settings: TrainConfig) -> None:
    """Open the recipe's trackers.

    Raises:
        ConfigError: One refuses, for it is not logged in or not reached.
    """
    if not settings.trackers:
        return
    try:
        accelerator.init_trackers("lrc", config={"tags": ",".join(settings.tags)})
    except Exception as error:  # every tracker has errors of its own
        raise ConfigError(
            f"train.trackers = {list(settings.trackers)} can't be started: {type(error).__name__}: "
            f"{' '.join(str(error).split())} Put that right, or leave the tracker out."
        ) from error


def end_training(accelerator: Accelerator) -> None:
    """Close the trackers and leave the group of processes; all ranks call it together.

    A group of gloo is left to the end of the process: destroyed right after a collective, it waits for its thread,
    which waits for Python's lock to free the collective's tensors; the caller holds it (seen with torch 2.13 and DDP).
    """
    for tracker in accelerator.trackers:
        tracker.finish()
    if not torch.distributed.is_initialized():
        return
    if torch.distributed.get_backend() == "gloo":
        _wait_for_gloo()
    else:
        torch.distributed.destroy_process_group()


def _wait_for_gloo() -> None:
    """Wait until gloo's threads have let go of all tensors.

    A collective returns before its thread frees the tensors, for which the thread needs Python's lock. A process that
    begins to exit in between aborts ("terminate called without an active exception"). The last collective's tensor
    tells when it is free; a thread that still holds an earlier one runs, or waits for a processor or the lock.
    """
    last = torch.zeros(())
    torch.distributed.all_reduce(last)
    deadline, idle_looks = time.monotonic() + LONGEST_WAIT, 0
    while idle_looks < IDLE_LOOKS and time.monotonic() < deadline:
        time.sleep(2e-3)  # leaves the lock to the threads
        is_busy = last._use_count() > 1 or _another_thread_runs()  # type: ignore[attr-defined]  # no stub
        idle_looks = 0 if is_busy else idle_looks + 1


def _another_thread_runs() -> bool:
    """Whether another thread of this process runs or waits for a processor; False where the system does not tell."""
    own = str(threading.get_native_id())
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has ended meanwhile
            if task.name != own and (task / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def check_space(
    folder: Path,
    pair: PairModel,
    settings: TrainConfig,
    *,
    dense: Dense | None = None,
    goes_on: bool = False,
) -> None:
    """Check that the run's folder can be written and its disk holds the checkpoints; writes and deletes nothing.

    Args:
        folder: Where they will lie; it need not stand yet.
        pair: What is trained at first.
        settings: The recipe's section: the optimiser, and how many checkpoints are kept.
        dense: The phase that comes later, if one does.
        goes_on: The folder's checkpoints stay until newer ones take their place; else the folder is deleted first.

    Raises:
        CheckpointError: It can't, or it does not.
    """
    standing = next(path for path in (folder, *folder.parents) if path.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
        raise CheckpointError(f"The run folder {folder} can't be written: {standing} is no folder that may be changed.")
    phases = [{name: value.shape for name, value in pair.trained().items()}]
    if dense is not None:
        phases.append(pair.trained_shapes(dense))
    one = max(checkpoint_bytes(shapes, settings.optimizer, pair.tables()) for shapes in phases)
    one += 4 * sum(value.numel() for name, value in pair.stored().items() if name.startswith("corrections."))
    most = num_kept(settings) + 2  # the best one beside those kept, and the one that is being written
    if goes_on:
        held = min(sum(_num_bytes(path) for path in checkpoints(folder)), one * (most - 1))  # the next one is new
    else:
        held = _num_bytes(folder)
    needed, free = one * most - held, shutil.disk_usage(standing).free
    if free < needed:
        raise CheckpointError(
            f"{folder} must have room for {needed / 1e9:.1f} GB of checkpoints, found {free / 1e9:.1f} GB. Free some "
            "space, lower train.save_total_limit, or name another run folder."
        )


def num_kept(settings: TrainConfig) -> int:
    """Return how many of its newest checkpoints a run keeps: without a limit all that it writes."""
    return settings.save_total_limit or -(-settings.max_steps // settings.save_steps)


def _num_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the resolved recipe; `load_recipe` reads it back to an equal one."""
    write_beside(path, recipe_to_yaml(recipe))
