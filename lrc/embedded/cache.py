"""The user's cache: folders that are built once, verified at every use and rebuilt when damaged.

First stop of `lrc/embedded/`: `teacher.py` and `text.py` hand their build step to `provide_folder`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lrc.data.file_hash import file_sha256
from lrc.errors import LrcError

SUMS_NAME = "SHA256SUMS.json"

Report = Callable[[str], None]


def cache_root() -> Path:
    """Return the cache folder: `$LRC_CACHE`, else `$XDG_CACHE_HOME/lrc`, else `~/.cache/lrc`."""
    own = os.environ.get("LRC_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache").absolute() / "lrc"


def provide_folder(
    name: str, *, build: Callable[[Path], None], origin: dict[str, str], needed_bytes: int, report: Report
) -> Path:
    """Return the sound cache folder `name`, building it if it is missing, damaged or of another origin.

    The folder is built beside its place and renamed into it, one process at a time; a failed build leaves what
    was there. `SHA256SUMS.json` in it records the origin and the size and hash of each file.

    Args:
        name: Path of the folder below `cache_root()`.
        build: Fills the empty folder it is given.
        origin: What the content follows from; a folder that records another origin is rebuilt.
        needed_bytes: Free disk space that the build needs at its peak.
        report: Receives one line a step.

    Raises:
        LrcError: The cache can't be written or is too full, or `build` raised it.
    """
    folder = cache_root() / name
    try:
        if find_damage(folder, origin) is None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_process(folder, lambda: report(f"Waiting for another process that is building {folder}.")):
            damage = find_damage(folder, origin)  # another process may have built it while this one waited
            if damage is None:
                return folder
            if folder.exists():
                report(f"Building {folder} anew, since {damage}.")
            _check_free_space(folder.parent, needed_bytes)
            _build_and_swap(folder, build, origin)
    except OSError as error:
        raise LrcError(
            f"The cache must be writable with {needed_bytes / 1e6:.0f} MB free, but {folder} could not be made: "
            f"{error}. Free some space, or set LRC_CACHE to a folder on another disk."
        ) from error
    return folder


def find_damage(folder: Path, origin: dict[str, str]) -> str | None:
    """Say what is wrong with a cache folder, or return None if every recorded size and hash holds."""
    try:
        sums = json.loads((folder / SUMS_NAME).read_text(encoding="utf-8"))
        recorded_origin = sums["origin"]
        expected = {file_name: (entry["bytes"], entry["sha256"]) for file_name, entry in sums["files"].items()}
    except FileNotFoundError:
        return f"{SUMS_NAME} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{SUMS_NAME} is unreadable"
    if recorded_origin != origin:
        return "another version of lrc made it"
    for file_name, (num_bytes, sha256) in expected.items():
        path = folder / file_name
        if not path.is_file():
            return f"{file_name} is missing"
        if path.stat().st_size != num_bytes:
            return f"{file_name} has {path.stat().st_size} bytes instead of {num_bytes}"
        if file_sha256(path) != sha256:
            return f"the content of {file_name} has changed"
    return None


@contextmanager
def one_process(path: Path, before_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of what is made at `path` (`.NAME.lock` beside it).

    Args:
        path: What only one process is to make; its folder must be there.
        before_waiting: Called if another process has the lock.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        before_waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_free_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise LrcError(
            f"The cache must have {needed_bytes / 1e6:.0f} MB free, but {folder} has {free_bytes / 1e6:.0f} MB. "
            f"Free some space, or set LRC_CACHE to a folder on another disk."
        )


def _build_and_swap(folder: Path, build: Callable[[Path], None], origin: dict[str, str]) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.*-*"):  # of a process that was killed; the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
    try:
        build(fresh)
        _seal(fresh, origin)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
            folder.rename(old / folder.name)
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _seal(folder: Path, origin: dict[str, str]) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)  # safetensors writes 0600, which another user of a shared cache could not read
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    text = json.dumps({"origin": origin, "files": files}, indent=2) + "\n"
    (folder / SUMS_NAME).write_text(text, encoding="utf-8")
    folder.chmod(0o755)
