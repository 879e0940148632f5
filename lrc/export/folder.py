"""A folder written beside its place and renamed into it, so that nothing is ever half there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lrc.errors import CheckpointError, ConfigError


def check_target(out: Path, *, overwrite: bool) -> None:
    """Check that an output folder may be written.

    Raises:
        ConfigError: It exists and is not to be replaced.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The output {out} must be a folder, but it is a file. Name another one.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(f"The output folder {out} exists and is not empty. Use --overwrite to replace it.")


@contextmanager
def written_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a draft folder to write to; on success it becomes `out`, on any failure it is removed.

    Raises:
        ConfigError: `out` exists and is not to be replaced.
        CheckpointError: The disk is full or not writable.
    """
    check_target(out, overwrite=overwrite)
    out = out.resolve()  # a link stays a link, and `.` has a name
    draft, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        try:
            draft.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{out} can't be written: {error}. What was there is untouched; free some space or name another folder."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
