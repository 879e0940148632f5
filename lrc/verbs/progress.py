"""Progress on standard error: a bar on a terminal, plain lines elsewhere; both with rate and time left."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lrc.training.metrics import format_seconds


def say(line: str) -> None:
    """Print a line for the user on standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def progress_lines(label: str, unit: str, *, lines: int = 10) -> Callable[[int, int], None]:
    """Make a callback `(done, total)` that shows progress.

    Args:
        label: What is done.
        unit: What is counted.
        lines: About how many lines are printed where there is no terminal.
    """
    return _bar(label, unit) if sys.stderr.isatty() else _lines(label, unit, lines)


def _lines(label: str, unit: str, lines: int) -> Callable[[int, int], None]:
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        if done == total or done % max(1, -(-total // lines)) == 0:
            spent = max(1e-9, time.monotonic() - began)
            left = format_seconds(spent / done * (total - done))
            say(f"{label} {done}/{total} {unit}  {done / spent:.2f}/s  ETA {left}")

    return show


def _bar(label: str, unit: str) -> Callable[[int, int], None]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[rate]:.2f}}/s  ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    began = time.monotonic()
    task = bar.add_task(label, total=None, rate=0.0)
    bar.start()

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total, rate=done / max(1e-9, time.monotonic() - began))
        if done == total:
            bar.stop()

    return show
