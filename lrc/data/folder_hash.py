"""`SHA256SUMS`: the hashes of a folder's files, written last, so that a cut, changed or lost file is found and named.

`sha256sum -c SHA256SUMS` reads it too. The first line holds the hash of the lines below it, since the record itself can
be damaged as well.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from lrc.data.file_hash import file_sha256

SUMS = "SHA256SUMS"
HEADER = "# sha256 of the lines below: "


def write_sums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Record the SHA-256 of every file of a folder that holds files only.

    Args:
        folder: Where the record is written too.
        known: Sums that were taken already, by file name.
    """
    sums = dict(known or {})
    for path in folder.iterdir():
        if path.name != SUMS and path.name not in sums:
            sums[path.name] = file_sha256(path)
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    (folder / SUMS).write_text(f"{HEADER}{hashlib.sha256(lines.encode()).hexdigest()}\n{lines}")


def find_damage(folder: Path, names: tuple[str, ...] | None = None, *, share: tuple[int, int] = (0, 1)) -> str | None:
    """Compare a folder's files with its record.

    Args:
        folder: One that `write_sums` recorded.
        names: The files to read; None: all that the record lists.
        share: (n, of how many) processes that read a share of the files each.

    Returns:
        What is wrong with the first file that is not as it was written, beginning with the file's name; None if all
        are. Files that the record does not list are passed over.
    """
    try:
        header, _, lines = (folder / SUMS).read_bytes().partition(b"\n")
    except OSError as error:
        return f"{SUMS} can't be read ({error.strerror})"
    if header.decode(errors="replace") != f"{HEADER}{hashlib.sha256(lines).hexdigest()}":
        return f"{SUMS} is not as it was written"
    recorded = {name: digest for digest, _, name in (line.partition("  ") for line in lines.decode().splitlines())}
    first, step = share
    for name in tuple(recorded if names is None else names)[first::step]:
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
        if found != recorded.get(name):
            return f"{name} is not as it was written (its SHA-256 differs from {SUMS})"
    return None
