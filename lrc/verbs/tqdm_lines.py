"""Another library's progress bar as plain lines where there is no terminal to redraw it on."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TextIO

BAR = re.compile(r"Running \w+ requests: +\d+%\|.*\| (\d+)/(\d+) \[[^<\]]*<([^,\]]*), *([^\]]*)\]")
"""What tqdm draws for the requests of lm-evaluation-harness; bars of other work are left out."""
ANY_BAR = re.compile(r"\d+%\|")


@contextmanager
def requests_as_lines(label: str) -> Iterator[None]:
    """Show the bar of lm-evaluation-harness on a terminal as it is, elsewhere as about ten lines.

    Args:
        label: What the lines begin with.
    """
    if sys.stderr.isatty():
        yield
        return
    with redirect_stderr(_Lines(sys.stderr, label)):
        yield


class _Lines(io.TextIOBase):
    """Turns a tqdm bar that is written to it into lines; other text goes through."""

    def __init__(self, target: TextIO, label: str) -> None:
        self._target = target
        self._label = label
        self._tenths = -1

    def write(self, text: str) -> int:
        for bar in BAR.finditer(text):
            done, total, left, rate = bar.groups()
            tenths = int(done) * 10 // int(total)
            if tenths < self._tenths:  # the next bar begins
                self._tenths = -1
            if tenths > self._tenths and done != "0":
                self._tenths = tenths
                self._target.write(f"{self._label} {done}/{total} requests  {rate}  ETA {left}\n")
                self._target.flush()
        if not ANY_BAR.search(text) and text.strip("\r\n "):
            self._target.write(text)
        return len(text)

    def flush(self) -> None:
        self._target.flush()
