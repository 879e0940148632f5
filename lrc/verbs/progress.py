"""Progress on standard error: a bar on a terminal, plain lines elsewhere; both with rate and time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lrc.training.metrics import format_seconds


def say(line: str) -> None:
    """Print a line for the user on standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_lines(label: str, unit: str, *, lines: int = 10) -> Iterator[Callable[[int, int], None]]:
    """Give a callback `(done, total)` that shows progress until the block ends, however it ends.

    Args:
        label: What is done.
        unit: What is counted.
        lines: About how many lines are printed where there is no terminal.
    """
    if not sys.stderr.isatty():
        yield _lines(label, unit, lines)
        return
    with bar_on_terminal(label, unit) as show:
        yield show


@contextmanager
def progress_once_called(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give the callback of `progress_lines`, which shows nothing until it is called."""
    with ExitStack() as stack:
        shows: list[Callable[[int, int], None]] = []

        def show(done: int, total: int) -> None:
            if not shows:
                shows.append(stack.enter_context(progress_lines(label, unit)))
            shows[0](done, total)

        yield show


def _lines(label: str, unit: str, lines: int) -> Callable[[int, int], None]:
    rate_of = _rate_meter()

    def show(done: int, total: int) -> None:
        rate = rate_of(done)
        if done and (done == total or done % max(1, -(-total // lines)) == 0):
            left = format_seconds((total - done) / max(1e-9, rate))
            say(f"{label} {done}/{total} {unit}  {rate:.2f}/s  ETA {left}")

    return show


def _rate_meter() -> Callable[[int], float]:
    """Give a function that turns what is done into a rate per second; a resumed run starts above 0."""
    began = time.monotonic()
    first: list[int] = []

    def rate_of(done: int) -> float:
        first[:] = first or [max(0, done - 1)]
        return (done - first[0]) / max(1e-9, time.monotonic() - began)

    return rate_of


@contextmanager
def bar_on_terminal(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give a callback `(done, total)` that moves a bar on a terminal and does nothing elsewhere.

    For work that prints its own lines: they appear above the bar. The bar ends with the block, however that ends.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[rate]:.2f}}/s  ETA"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        yield _mover(bar, label)


def _mover(bar: Progress, label: str) -> Callable[[int, int], None]:
    rate_of = _rate_meter()
    task = bar.add_task(label, total=None, rate=0.0)

    def move(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total, rate=rate_of(done))

    return move
