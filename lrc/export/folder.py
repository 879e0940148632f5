"""A folder written beside its place and renamed into it, so that nothing is ever half there."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lrc.errors import CheckpointError, ConfigError
from lrc.sft_config import SFT_FACTS

PRODUCTS = (
    frozenset({"parity.json"}),
    frozenset({"gguf_parity.json"}),
    frozenset({"int8_parity.json"}),
    frozenset({SFT_FACTS}),
    frozenset({"sft.yaml", "dataset_info.json"}),
)
"""Files that tell a folder as written by lrc convert, export or sft, which may replace it: all of one set lie there."""
LISTED = 3
"""Names of a folder's content that an error lists."""


def check_target(out: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Check that an output folder may be written.

    Args:
        out: The folder; it is replaced as a whole.
        overwrite: Whether it may exist; what lrc has not written is not replaced even so.
        inputs: What is read to write it; one that is not there is no file (a hub id) and is passed over.

    Raises:
        ConfigError: It exists and is not to be replaced, or replacing it would delete an input or somebody's files.
    """
    check_apart(out, inputs)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"The output {out} must be a folder, but it is a file. Name another one.")
    entries = sorted(out.iterdir()) if out.is_dir() else []
    if not entries:
        return
    names = [entry.name for entry in entries]
    if not any(product.issubset(names) for product in PRODUCTS):
        listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
        raise ConfigError(
            f"The output folder {out} holds {listed}, but nothing that tells it as written by lrc convert, export or "
            "sft, so not even --overwrite replaces it. Name another folder."
        )
    folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]
    if folders:
        raise ConfigError(
            f"The output folder {out} holds the folder {folders[0]}, which lrc convert, export and sft do not write, "
            "so not even --overwrite replaces it. Move that one away or name another folder."
        )
    if not overwrite:
        raise ConfigError(f"The output folder {out} exists and is not empty. Use --overwrite to replace it.")


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Check that none of a call's inputs lies in the folder that it replaces as a whole; `inputs` as `check_target`'s.

    Raises:
        ConfigError: One does.
    """
    for path in inputs:
        if path.exists() and path.resolve().is_relative_to(out.resolve()):
            raise ConfigError(
                f"The output {out} is replaced as a whole, so it must not be or hold what is read, but {path} is "
                f"{'that folder' if path.resolve() == out.resolve() else 'in it'}. Name another one."
            )


@contextmanager
def written_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a draft folder to write to; on success it becomes `out`, on any failure it is removed.

    What a call that was killed between the two renames has set aside, the only copy, is put back first.

    Raises:
        ConfigError: `out` exists and is not to be replaced.
        CheckpointError: The disk is full or not writable.
    """
    place = out.resolve()  # a link stays a link, and `.` has a name
    draft, old = place.with_name(f".{place.name}.partial"), place.with_name(f".{place.name}.old")
    if old.is_dir() and not place.exists():
        old.rename(place)
    check_target(out, overwrite=overwrite)
    out = place
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
