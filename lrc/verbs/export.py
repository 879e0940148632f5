"""`lrc export`: a finished student in the form that an engine wants, proven equal before it is published."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lrc.config import ConvertConfig
from lrc.errors import ConfigError

Form = Literal["llama", "gguf", "int8"]
GgufType = Literal["f32", "f16", "q8_0", "q5_0", "q4_k_m"]


def export_verb(
    student: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    /,
    *,
    form: Annotated[Form, tyro.conf.arg(name="as")],
    gguf_type: Annotated[GgufType | None, tyro.conf.arg(name="type")] = None,
    max_shard_bytes: int = ConvertConfig.max_shard_bytes,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Write a student in another form, and prove that it is the same model.

    Args:
        student: Folder that lrc convert or lrc sft wrote.
        out: Folder of the export.
        form: llama (LlamaForCausalLM with the same logits), gguf (one file for llama.cpp) or int8 (torchao).
        gguf_type: Of a GGUF file's weights (default: f16).
        max_shard_bytes: Largest weights file of a llama.
        overwrite: Replace the folder.
        dry_run: Check everything, write nothing.
    """
    if gguf_type is not None and form != "gguf":
        raise ConfigError(f"--type is for --as gguf, found --as {form}. Leave it out.")
    if form == "llama":
        from lrc.verbs.export_llama import export_llama

        export_llama(student, out, max_shard_bytes=max_shard_bytes, overwrite=overwrite, dry_run=dry_run)
    elif form == "gguf":
        from lrc.verbs.export_gguf import export_gguf

        out = export_gguf(student, out, kind=gguf_type or "f16", overwrite=overwrite, dry_run=dry_run)
    else:
        from lrc.verbs.export_int8 import export_int8

        export_int8(student, out, overwrite=overwrite, dry_run=dry_run)
    if not dry_run:
        print(out)
