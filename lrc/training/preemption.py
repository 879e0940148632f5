"""Preemption: SIGTERM and SIGUSR1 (Slurm's warning) end a run with a checkpoint and an exit code that asks to go on."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PREEMPTED = 75
"""Exit code of a run that was told to stop and can go on with `--resume auto`: EX_TEMPFAIL of sysexits.h."""


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
    """Handle the signals for the length of a block."""
    preemption = Preemption()
    previous = {number: signal.signal(number, preemption.note) for number in SIGNALS}
    try:
        yield preemption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
