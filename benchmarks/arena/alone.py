"""A lock file, so that arenas that run at once do not write the same thing together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrc.embedded.cache import one_process
from lrc.verbs.progress import say


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of what is written at `path`; wait while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_process(path, lambda: say(f"waiting for another process that makes {path}")):
        yield
