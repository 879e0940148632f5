"""Plain progress lines on standard error, with rate and time left; a tenth of the work a line."""

import sys
import time
from collections.abc import Callable

from lrc.training.metrics import format_seconds


def progress_lines(label: str, unit: str, *, lines: int = 10) -> Callable[[int, int], None]:
    """Make a callback `(done, total)` that prints about `lines` lines."""
    began = time.monotonic()

    def show(done: int, total: int) -> None:
        if done == total or done % max(1, -(-total // lines)) == 0:
            spent = max(1e-9, time.monotonic() - began)
            left = format_seconds(spent / done * (total - done))
            print(f"{label} {done}/{total} {unit}  {done / spent:.2f}/s  ETA {left}", file=sys.stderr, flush=True)

    return show
