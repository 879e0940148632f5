"""`lrc sft RECIPE --write-llama-factory OUT`: the files that LLaMA-Factory fine-tunes this student with."""

import tempfile
from pathlib import Path
from typing import Any

from lrc.config import Recipe
from lrc.data.source_files import is_remote
from lrc.data.source_rows import read_rows
from lrc.errors import DataError
from lrc.export.folder import check_apart, check_target, written_folder
from lrc.sft.llama_factory import SETTINGS, llama_factory_files
from lrc.sft.samples import ChatCounts, read_samples
from lrc.verbs.progress import say
from lrc.verbs.sft_inputs import chat_encoder, chat_files, require_data, student_folder


def sft_llama_factory(recipe: Recipe, out: Path, *, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Write `sft.yaml` and `dataset_info.json` for a student and its chats.

    Chats on this machine are checked first, for LLaMA-Factory leaves out what it can't read; of a hub's set, rows of
    `messages` are taken for granted.

    Args:
        recipe: The run.
        out: A folder.
        overwrite: Replace it.
        dry_run: Check everything, write nothing.

    Returns:
        The YAML file.

    Raises:
        ConfigError, DataError, CheckpointError: Something can't work; nothing was written.
    """
    check_target(out, overwrite=overwrite)
    source = require_data(recipe)
    student = student_folder(recipe)
    local = chat_files(source)
    check_apart(out, [student, *local])
    tokenizer, encoder = chat_encoder(student)
    files: list[tuple[str, dict[str, Any]]]
    if is_remote(source):
        files = [(source, {"messages": []})]
    else:
        counts = ChatCounts()
        with tempfile.TemporaryDirectory() as scratch:
            for _ in read_samples(source, encoder, recipe.sft, counts, Path(scratch)):
                continue
        say(f"chats: {counts.line()}")
        files = [(str(path), _first_row(path)) for path in local]
    texts = llama_factory_files(
        out, settings=recipe.sft, student=student, chat_template=tokenizer.chat_template, files=files
    )
    if not dry_run:
        with written_folder(out, overwrite=overwrite) as draft:
            for name, text in texts.items():
                (draft / name).write_text(text)
    return out / SETTINGS


def _first_row(path: Path) -> dict[str, Any]:
    """Return a file's first readable row: it tells which kind of chats the file holds."""
    row = next((row.value for row in read_rows(path) if row.value), None)
    if row is None:
        raise DataError(f"{path} must hold at least one readable row, but holds none. Mend it or leave it out.")
    return row
