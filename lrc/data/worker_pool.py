"""Tasks in processes of this machine, watched: a worker that dies ends the run, and none outlives the run.

`multiprocessing.Pool`, as datatrove uses it, replaces a dead worker and waits for the task that died with it forever.
"""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from lrc.errors import DataError


@dataclass
class _Worker:
    process: Any
    connection: Any
    """This end of a pipe: task numbers go out, what became of them comes back."""

    def give(self, task: int) -> None:
        """Send a task; that a dead worker doesn't take it is found when its answer is awaited."""
        with suppress(BrokenPipeError):
            self.connection.send(task)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def run_in_processes(work: Callable[[int], None], tasks: Sequence[int], *, workers: int, name: str) -> None:
    """Call `work` with each task in one of several processes; the first failure ends all of them.

    Args:
        work: What a worker does; is copied to it once.
        tasks: Numbers of the tasks, in the order in which they start.
        workers: Processes.
        name: What errors call the work.

    Raises:
        DataError: A worker was killed.
        Exception: What a task raised.
    """
    left = list(reversed(tasks))
    with ExitStack() as stack:
        busy = []
        for _ in range(min(workers, len(tasks))):
            worker = _start(work)
            stack.callback(worker.stop)
            worker.give(left.pop())
            busy.append(worker)
        while busy:
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                _check_answer(worker, name)
                if left:
                    worker.give(left.pop())
                else:
                    busy.remove(worker)


def _start(work: Callable[[int], None]) -> _Worker:
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, work), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _check_answer(worker: _Worker, name: str) -> None:
    """Receive what became of a task, and raise what it raised."""
    try:
        error: Exception | None = worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        raise DataError(
            f"A worker of {name} must not end before its tasks do, but one was killed (exit code "
            f"{worker.process.exitcode}), by the system if memory ran out. Lower prepare.workers or "
            "prepare.max_document_bytes and run again: finished files are kept."
        ) from None
    if error is not None:
        raise error


def _serve(connection: Any, work: Callable[[int], None]) -> None:
    """Do tasks until there are no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            connection.send(_try(work, connection.recv()))


def _try(work: Callable[[int], None], task: int) -> Exception | None:
    try:
        work(task)
    except Exception as error:  # noqa: BLE001  # the run raises it anew
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001  # an error that can't be sent still says what it is
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
    return None


def _end_with_parent() -> None:
    """End this process as soon as a kill has ended the one that started it: the next run does its task anew."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
