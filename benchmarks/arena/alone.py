"""A lock file, so that arenas that run at once do not write the same thing together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lrc.verbs.progress import say


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of what is written at `path` (`.NAME.lock` beside it); wait while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that makes {path}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
