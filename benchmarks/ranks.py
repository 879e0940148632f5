"""Several processes of one run without the seconds that each start of Python and torch takes: forks of this one.

The parent imports the package once and must not touch torch.distributed or accelerate's state; each child joins the
others over gloo, as if a launcher had started it. One thread a process, since threads do not survive a fork.
"""

import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lrc.errors import LrcError


@dataclass
class Rank:
    """One forked process; what it prints comes through a pipe, which a limit on file sizes does not touch."""

    pid: int
    pipe: int
    output: Path
    code: int | None = None
    """Exit code, or minus the signal that ended it; None while it runs."""

    def poll(self) -> int | None:
        """Look whether it has ended, and write down what it has printed."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._drain()
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                os.close(self.pipe)
        return self.code

    def kill(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _drain(self) -> None:
        with self.output.open("ab") as handle:
            while chunk := _read_now(self.pipe):
                handle.write(chunk)


def _read_now(pipe: int) -> bytes:
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""


def start_ranks(
    work: Callable[[int], None], count: int, output: Path, environment: Mapping[str, str] | None = None
) -> list[Rank]:
    """Fork `count` processes that each call `work(rank)`; what they print is appended to `output/rank-N.txt`.

    Args:
        work: An `LrcError` or `SystemExit` in it sets the exit code, as in `lrc`.
        count: 1 sets no variables of a launcher.
        output: Folder of the files.
        environment: Variables to set in the children.
    """
    output.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = []
    for rank in range(count):
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        pid = os.fork()
        if pid == 0:
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            os.environ.update({**own, **(environment or {})})
            _run_child(work, rank, writing)
        os.close(writing)
        ranks.append(Rank(pid, reading, output / f"rank-{rank}.txt"))
    return ranks


def _run_child(work: Callable[[int], None], rank: int, output: int) -> None:
    """Do the work and leave without the parent's clean-up, whatever happens."""
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.register(signal.SIGUSR2, file=output, all_threads=True)
        code = _code_of(work, rank)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _code_of(work: Callable[[int], None], rank: int) -> int:
    try:
        work(rank)
    except LrcError as error:
        print(f"lrc: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:  # noqa: BLE001  # the process ends here, whatever it was
        traceback.print_exc()
        return 1
    return 0


def wait_for(ranks: list[Rank], *, seconds: float, grace: float = 10.0) -> list[int]:
    """Wait for all to end; once one has failed, the others get `grace` seconds and then SIGKILL, as from a launcher.

    Returns:
        Exit codes; a process that ran past a third of `seconds` says where it is, one that ran past all was killed.
    """
    began = time.monotonic()
    deadline, asked = began + seconds, False
    while None in [rank.poll() for rank in ranks]:  # all of them: one that was killed must be noticed while others wait
        if any(rank.code for rank in ranks):
            deadline = min(deadline, time.monotonic() + grace)
            grace = float("inf")
        if not asked and time.monotonic() > began + seconds / 3:
            asked = True
            for rank in ranks:
                rank.kill(signal.SIGUSR2)
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.kill(signal.SIGKILL)
        time.sleep(0.002)
    return [int(rank.code or 0) for rank in ranks]
