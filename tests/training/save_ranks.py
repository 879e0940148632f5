"""Two forked ranks that save a checkpoint in pieces: `python save_ranks.py FOLDER WHAT`, a script for tests.

WHAT happens to the second rank: nothing (`whole`), SIGKILL before it writes its second file (`kill`), a full disk there
(`full`), or a damaged checkpoint that the first rank finds (`damaged`). Prints the exit codes.
"""

import errno
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.ranks import start_ranks, wait_for
from lrc.models.stored_tensors import Piece, whole_piece
from lrc.training import checkpoint
from lrc.training.checkpoint import Held, save_checkpoint
from lrc.training.checkpoint_list import agreed_resume
from lrc.training.run_state import RunState

MATRIX = torch.arange(21.0).reshape(7, 3)
SECOND = 2


def held(rank: int) -> Held:
    rows = MATRIX[:4] if rank == 0 else MATRIX[4:]
    piece = Piece(values=rows.contiguous(), start=12 * rank, shape=MATRIX.shape)
    count = {"step/projections.lm_head": whole_piece(torch.tensor(2.0))} if rank == 0 else {}
    moments = {"exp_avg/projections.lm_head": piece, **count}
    return Held(weights={"projections.lm_head": piece}, moments=moments, is_sharded=True)


def spoil_second_file(what: str) -> None:
    write, calls = checkpoint.save_file, 0

    def spoiled(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == SECOND and what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == SECOND:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments, **options)

    checkpoint.save_file = spoiled  # type: ignore[assignment]


def main(folder: Path, what: str) -> None:
    def work(rank: int) -> None:
        dist.init_process_group("gloo", timeout=timedelta(seconds=30))
        accelerator: Any = SimpleNamespace(num_processes=2, process_index=rank, is_main_process=rank == 0)
        if what == "damaged":
            print(f"takes {agreed_resume(accelerator, folder, 'auto', print)}")
            return
        if rank == 1 and what != "whole":
            spoil_second_file(what)
        state = RunState(step=2, tokens=8, seconds=1.0, sequences_per_step=4)
        save_checkpoint(folder, held(rank), state, {"format": 1}, accelerator)

    print(wait_for(start_ranks(work, 2, folder.parent / f"output-{what}"), seconds=60))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
