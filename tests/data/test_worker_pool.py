"""Tasks run in processes; a failure, a killed worker and a killed run end all of them, and nothing waits forever."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lrc.data.worker_pool import run_in_processes
from lrc.errors import DataError


class Unsendable(Exception):
    """Can't be unpickled: it takes two arguments and keeps one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def note(folder: Path, task: int) -> None:
    (folder / f"{task}-{os.getpid()}").touch()
    time.sleep(0.02)


def fail(error: Exception, task: int) -> None:
    if task == 1:
        raise error
    time.sleep(100)


def fail_unsendable(task: int) -> None:
    raise Unsendable("no ", "way")


def be_killed(task: int) -> None:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


def say_and_wait(folder: Path, task: int) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(100)


def test_every_task_is_done_once_by_so_many_workers(tmp_path: Path) -> None:
    run_in_processes(partial(note, tmp_path), range(3, 15), workers=3, name="notes")
    tasks, pids = zip(*(path.name.split("-") for path in tmp_path.iterdir()), strict=True)
    assert sorted(map(int, tasks)) == list(range(3, 15))
    assert 1 < len(set(pids)) <= 3
    assert str(os.getpid()) not in pids


def test_the_first_failure_ends_the_run_and_is_raised_here() -> None:
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"a\.jsonl is damaged"):
        run_in_processes(partial(fail, DataError("a.jsonl is damaged")), range(3), workers=2, name="tokenise")
    assert time.monotonic() - begin < 50
    with pytest.raises(RuntimeError, match="Unsendable: no way"):
        run_in_processes(fail_unsendable, range(2), workers=2, name="tokenise")


def test_a_killed_worker_is_an_error_and_not_waited_for() -> None:
    with pytest.raises(DataError, match=r"A worker of tokenise .* was killed \(exit code -9\).*Lower prepare\.workers"):
        run_in_processes(be_killed, range(3), workers=2, name="tokenise")


def is_running(pid: int) -> bool:
    """Tell whether a process runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = "\n".join(
        (
            "from functools import partial",
            "from pathlib import Path",
            "from lrc.data.worker_pool import run_in_processes",
            "from tests.data.test_worker_pool import say_and_wait",
            f"run_in_processes(partial(say_and_wait, Path({str(tmp_path)!r})), range(2), workers=2, name='wait')",
        )
    )
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": root})
    while child.poll() is None and len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    child.kill()
    child.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]
