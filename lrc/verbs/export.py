"""`lrc export`: a finished student in the form that an engine wants, proven equal before it is published."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lrc.config import ConvertConfig

Form = Literal["llama"]


def export_verb(
    student: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    /,
    *,
    form: Annotated[Form, tyro.conf.arg(name="as")],
    max_shard_bytes: int = ConvertConfig.max_shard_bytes,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Write a student in another form, and prove that it is the same model.

    Args:
        student: Folder that lrc convert or lrc sft wrote.
        out: Folder of the export.
        form: llama (LlamaForCausalLM with the same logits).
        max_shard_bytes: Largest weights file.
        overwrite: Replace the folder.
        dry_run: Check everything, write nothing.
    """
    if form == "llama":
        from lrc.verbs.export_llama import export_llama

        export_llama(student, out, max_shard_bytes=max_shard_bytes, overwrite=overwrite, dry_run=dry_run)
    print(out)
