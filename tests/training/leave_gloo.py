"""Pairs of forked ranks that end a run right after a collective, gloo's threads held back: a script for tests.

`python leave_gloo.py FOLDER PAIRS`; prints the exit codes. All share one core with a busy parent, and gloo's threads
run only when nobody else wants it: a rank that does not wait for them exits before they have freed their tensors.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from lrc.training.launch import end_training


def rank(number: int, rendezvous: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number, world_size=2)
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != os.getpid():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    for _ in range(3):
        value = torch.ones(4)
        dist.all_reduce(value)
    assert value.tolist() == [2.0] * 4
    accelerator: Any = SimpleNamespace(trackers=[])
    end_training(accelerator)


def main(folder: Path, pairs: int) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    codes = []
    for number in range(pairs):
        children = []
        for index in range(2):
            child = os.fork()
            if child == 0:
                rank(index, folder / f"rendezvous-{number}")
                sys.exit(0)  # through Python's own way out
            children.append(child)
        left = set(children)
        while left:  # busy, so that idle threads wait
            done, status = os.waitpid(-1, os.WNOHANG)
            if done:
                left.discard(done)
                codes.append(os.waitstatus_to_exitcode(status))
    print(*codes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
