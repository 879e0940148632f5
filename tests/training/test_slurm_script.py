"""The Slurm script hands signals and exit codes through: one task a rank, and code 75 goes back into the queue."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "configs" / "slurm" / "train.sbatch"
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do echo "$1" >> "$FAKE/options"; shift; done
worst=0
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" || worst=$?
done
exit $worst
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> "$FAKE/requeued"; fi
"""
LRC = """#!/bin/bash
echo "$RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $*" >> "$FAKE/calls"
exit ${FAKE_CODE}
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("code", "requeued", "cores"), [(0, False, "8"), (1, False, None), (2, False, "8"), (75, True, "8")]
)
def test_only_a_preempted_run_is_requeued(tmp_path: Path, code: int, requeued: bool, cores: str | None) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("lrc", LRC)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "FAKE": str(tmp_path),
        "FAKE_CODE": str(code),
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    environment |= {} if cores is None else {"SLURM_CPUS_PER_TASK": cores}
    arguments = ["recipe.yaml", "train.strategy=fsdp2", "run=runs/a b"]
    done = subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    words = "train recipe.yaml train.strategy=fsdp2 run=runs/a b --resume auto"
    assert calls == [f"{rank}/2 {rank} first:32345 {words}" for rank in (0, 1)]
    # srun does not inherit sbatch's cores a task
    taken = [] if cores is None else [f"--cpus-per-task={cores}"]
    # one dead rank does not hold the allocation until the others' collectives time out
    assert (tmp_path / "options").read_text().split() == [*taken, "--kill-on-bad-exit=0", "--wait=120"]
    assert (tmp_path / "requeued").is_file() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 12345\n"


def test_a_recipe_must_be_named(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n"}
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "name the recipe" in done.stderr


def test_the_warning_reaches_the_tasks_and_not_the_batch_shell() -> None:
    assert "#SBATCH --signal=USR1@180" in SCRIPT.read_text()
