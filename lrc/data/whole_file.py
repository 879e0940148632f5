"""Files of the work folder that running tasks may be reading: replaced whole, and only if their content is another."""

import os
from pathlib import Path
from uuid import uuid4


def write_if_changed(path: Path, content: bytes) -> None:
    """Give a file this content; one that has it already is left untouched, so no reader meets half a file.

    Raises:
        OSError: The disk is full or not writable; what stood at `path` is untouched.
    """
    if path.is_file() and path.read_bytes() == content:
        return
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
