"""Preemption: SIGTERM and SIGUSR1 (Slurm's warning) end a run with a checkpoint and an exit code that asks to go on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PREEMPTED = 75
"""Exit code of a run that was told to stop and can go on with `--resume auto`: EX_TEMPFAIL of sysexits.h."""
PATIENCE_SECONDS = 1.0
"""How long a signal may wait for Python before the loop: one that waits inside a library would wait with it."""


class Preemption:
    """Whether a signal came; before the loop there is nothing to save, so it ends the process at once."""

    def __init__(self) -> None:
        self.is_requested = False
        self.is_deferred = False
        """The loop watches `is_requested` itself and ends after the step."""

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.is_requested = True
        if not self.is_deferred:
            raise SystemExit(PREEMPTED)


@contextmanager
def preemption_signals() -> Iterator[Preemption]:
    """Handle the signals for the length of a block.

    Python calls its handlers between two of its own instructions. A process that waits for the others to join it waits
    inside torch, so a thread ends it where the handler has not come to it.
    """
    preemption, is_over = Preemption(), threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=_watch, args=(reading, preemption, is_over), daemon=True)
    watcher.start()
    previous_pipe = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, preemption.note) for number in SIGNALS}
    try:
        yield preemption
    finally:
        is_over.set()
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_pipe)
        os.close(writing)
        watcher.join()


def _watch(pipe: int, preemption: Preemption, is_over: threading.Event) -> None:
    """End the process if a signal, whose number comes through the pipe, is still not handled after a while."""
    while number := os.read(pipe, 1):
        is_ours = number[0] in SIGNALS and not preemption.is_deferred
        if is_ours and not is_over.wait(PATIENCE_SECONDS) and not preemption.is_requested:
            os._exit(PREEMPTED)
    os.close(pipe)
