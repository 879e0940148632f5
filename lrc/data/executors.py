"""Where the stages of `lrc prepare` run, on datatrove's executors: processes here, a Ray cluster, or Slurm jobs.

Each keeps `logs/STAGE/completions/RANK` in the work folder for every finished task, and leaves those out the next time.
"""

import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from lrc.data.stages import Stage
from lrc.data.worker_pool import run_in_processes
from lrc.data_config import ClusterConfig
from lrc.errors import ConfigError, DataError

LOGS = "logs"
SUBMITTED = "submitted_job"
MAX_ARRAY_SIZE = 1001
"""Jobs of a Slurm array, as many as Slurm takes unless told otherwise. More tasks than that share jobs: datatrove would
cut them into several arrays, and the next stage would wait for the last one alone."""


def run_here(stage: Stage, folder: Path, *, workers: int) -> None:
    """Run a stage's unfinished tasks on this machine.

    Args:
        stage: The stage.
        folder: The work folder.
        workers: Processes.

    Raises:
        DataError: A task failed.
    """
    from datatrove.executor import LocalPipelineExecutor

    _hush()
    executor = LocalPipelineExecutor(
        pipeline=stage.pipeline, tasks=stage.tasks, workers=1, logging_dir=_logs(folder, stage)
    )
    left = executor.get_incomplete_ranks()
    if min(workers, len(left)) > 1:
        run_in_processes(partial(_run_task, executor), left, workers=workers, name=stage.name)
    else:
        for rank in left:
            _run_task(executor, rank)


def _run_task(executor: Any, rank: int) -> None:
    """Run one task as datatrove's executor does, on a copy of its own: steps keep counts."""
    deepcopy(executor)._run_for_rank(rank, local_rank=rank)


def run_on_ray(stage: Stage, folder: Path, *, workers: int | None, cluster: ClusterConfig) -> None:
    """Run a stage's unfinished tasks on the Ray cluster that RAY_ADDRESS names, or on one of this machine.

    Args:
        stage: The stage.
        folder: The work folder, on a disk that all nodes share.
        workers: Tasks at once; None: as many as the cluster takes.
        cluster: What a task needs.

    Raises:
        ConfigError: Ray is not installed.
        DataError: A task failed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError("prepare.executor=ray needs Ray. Install it with: pip install ray.") from error
    from datatrove.executor import RayPipelineExecutor

    _hush()
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    executor = RayPipelineExecutor(
        pipeline=stage.pipeline,
        tasks=stage.tasks,
        workers=workers or -1,
        logging_dir=_logs(folder, stage),
        cpus_per_task=cluster.cpus_per_task,
        mem_per_cpu_gb=cluster.memory_per_cpu_gigabytes,
    )
    executor.run()
    if left := count_unfinished(stage, folder):
        raise DataError(
            f"{left} of {stage.tasks} tasks of {stage.name} failed; {_logs(folder, stage)} says why. Mend it and run "
            "again: finished tasks are kept."
        )


def submit_to_slurm(
    stages: Sequence[Stage], folder: Path, *, workers: int | None, cluster: ClusterConfig
) -> str | None:
    """Submit the unfinished tasks as Slurm job arrays, each stage behind the one before it.

    Args:
        stages: All, in order.
        folder: The work folder, on a disk that all nodes share.
        workers: Tasks at once; None: as many as Slurm runs.
        cluster: What a task needs.

    Returns:
        The last job's id; None if every task is done.

    Raises:
        ConfigError: There is no sbatch, or it refuses.
        DataError: Jobs of this folder were submitted before and are not done, or a stage ran on one that is not done.
    """
    note, last = folder / SUBMITTED, stages[-1]
    if not any(count_unfinished(stage, folder) for stage in stages):
        return None
    _refuse_gaps(stages, folder)
    if note.is_file():
        raise DataError(
            f"The jobs of {folder} were submitted (the last is {note.read_text()}), but "
            f"{count_unfinished(last, folder)} of {last.tasks} files are not done. Wait for them (squeue --me) and run "
            f"again; to submit anew what failed, delete {note}."
        )
    if shutil.which("sbatch") is None:
        raise ConfigError("prepare.executor=slurm must find sbatch on the PATH. Run it on a login node of the cluster.")
    executor: Any = None
    for stage in stages:
        executor = _slurm_executor(stage, folder, workers=workers, cluster=cluster, after=executor)
    _hush()
    try:
        executor.run()
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"sbatch must take the jobs, but it refused: {error}. See prepare.cluster.") from error
    note.write_text(str(executor.job_id))
    return str(executor.job_id) if count_unfinished(last, folder) else None


def _refuse_gaps(stages: Sequence[Stage], folder: Path) -> None:
    """Refuse to go on where a stage has begun although one before it, which it reads, is not done.

    Raises:
        DataError: There is such a stage.
    """
    for number, stage in enumerate(stages):
        left = count_unfinished(stage, folder)
        begun = [later.name for later in stages[number + 1 :] if count_unfinished(later, folder) < later.tasks]
        if left and begun:
            raise DataError(
                f"{stage.name} must be done before {begun[0]} begins, but {left} of its {stage.tasks} tasks are not "
                f"({_logs(folder, stage)} says why), so duplicates may be missed. Start anew with --overwrite."
            )


def count_unfinished(stage: Stage, folder: Path) -> int:
    """Count the tasks of a stage that are not done."""
    done = Path(_logs(folder, stage)) / "completions"
    return stage.tasks - (sum(1 for _ in done.iterdir()) if done.is_dir() else 0)


def _slurm_executor(stage: Stage, folder: Path, *, workers: int | None, cluster: ClusterConfig, after: Any) -> Any:
    from datatrove.executor import SlurmPipelineExecutor

    here = Path(sys.executable).parent
    return SlurmPipelineExecutor(
        pipeline=stage.pipeline,
        tasks=stage.tasks,
        workers=workers or -1,
        tasks_per_job=math.ceil(stage.tasks / MAX_ARRAY_SIZE),
        max_array_size=MAX_ARRAY_SIZE,
        depends=after,
        job_name=f"lrc-{stage.name}",
        logging_dir=_logs(folder, stage),
        partition=cluster.partition,
        time=f"{cluster.hours}:00:00",
        qos=cluster.qos,
        cpus_per_task=cluster.cpus_per_task,
        mem_per_cpu_gb=cluster.memory_per_cpu_gigabytes,
        env_command=cluster.environment_command or f'export PATH="{here}:$PATH"',
    )


def _logs(folder: Path, stage: Stage) -> str:
    return os.fspath((folder / LOGS / stage.name).absolute())


def _hush() -> None:
    """Keep datatrove's log off the terminal: the verb shows progress, the manifest says what happened."""
    from loguru import logger

    logger.disable("datatrove")
    logging.getLogger("datatrove").setLevel(logging.ERROR)
