"""A file written beside its place and renamed into it, so that a kill leaves the old one or the new one, whole."""

import os
from pathlib import Path


def write_beside(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        OSError: The disk is full or not writable; what stood at `path` is untouched.
    """
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(text)
    os.replace(draft, path)
