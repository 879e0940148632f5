"""A folder written beside its place and renamed into it, so that nothing is ever half there."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lrc.errors import CheckpointError, ConfigError


def check_target(out: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Check that an output folder may be written.

    Args:
        out: The folder; it is replaced as a whole.
        overwrite: Whether it may exist.
        inputs: What is read to write it; one that is not there is no file (a hub id) and is passed over.

    Raises:
        ConfigError: It exists and is not to be replaced, or replacing it would delete an input.
    """
    for path in inputs:
        if path.exists() and path.resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"The output {out} is replaced as a whole, so it must not be or hold what is read, but {path} is "
                f"{'that folder' if path.resolve() == out.resolve() else 'in it'}. Name another one."
            )
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
