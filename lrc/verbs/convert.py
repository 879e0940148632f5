"""`lrc convert`: a checkpoint becomes a plain Hugging Face folder that passed its parity check."""

import json
from pathlib import Path

from lrc.config import ConvertConfig, StudentConfig
from lrc.errors import LrcError
from lrc.export.convert import Source, check_dtype, read_source, write_student
from lrc.export.folder import check_target, written_folder
from lrc.export.original_student import OriginalStudent
from lrc.export.parity import check_parity, whole_model_note
from lrc.models.folder import resolve_folder
from lrc.models.set_aside import find_set_aside
from lrc.verbs.progress import progress_lines, say
from lrc.verbs.sources import locate_teacher


def convert(
    checkpoint: Path,
    out: Path,
    *,
    teacher: str | None = None,
    student: StudentConfig | OriginalStudent | None = None,
    dtype: str = ConvertConfig.dtype,
    max_shard_bytes: int = ConvertConfig.max_shard_bytes,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Path:
    """Merge a checkpoint with its teacher, prove the result and publish it as `out`.

    Memory: one weights file while merging, then, while the result is proved, the whole teacher in float32 if it is
    small, else a layer of it; composites, stacked experts, fp8 and mxfp4 are held whole, whatever their size
    (docs/formats.md).

    Args:
        checkpoint: `checkpoint-N` folder, or a safetensors file (also of the original code).
        out: Folder of the student.
        teacher: Teacher; None: the checkpoint knows.
        student: Sizes and variant, and of the original code the eps of the norms; None: the checkpoint knows.
        dtype: Dtype of the weights; `teacher`: as the teacher's are stored.
        max_shard_bytes: Largest weights file.
        trust_remote_code: As in the recipe.
        overwrite: Replace `out`.
        dry_run: Check everything, write nothing.

    Returns:
        `out`.

    Raises:
        ConfigError, CheckpointError: Bad input, before anything is written.
        NumericsError: The student's logits are not the factored student's; nothing is published.
    """
    checkpoint = find_set_aside(checkpoint)
    check_target(out, overwrite=overwrite, inputs=[checkpoint])
    check_dtype(dtype)
    find = _find_recorded if teacher is None else locate_teacher
    source = read_source(checkpoint, teacher=teacher, student=student, locate=find, trust_remote_code=trust_remote_code)
    check_target(out, overwrite=overwrite, inputs=[source.teacher_folder])
    for note in (*source.notes, whole_model_note(source)):
        if note is not None:
            say(f"note: {note}")
    if dry_run:
        say(f"dry run: {checkpoint} fits {source.teacher_folder}: good")
        return out

    with written_folder(out, overwrite=overwrite) as draft:
        _write_proven(source, draft, dtype=dtype, max_shard_bytes=max_shard_bytes)
    return out


def _write_proven(source: Source, draft: Path, *, dtype: str, max_shard_bytes: int) -> None:
    """Write the student and, once it is proved, `parity.json`; the caller publishes them."""
    with progress_lines("merge", "tensors", lines=4) as progress:
        write_student(source, draft, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=progress)
    with progress_lines("parity", "parts", lines=4) as progress:
        facts = check_parity(source, draft, progress=progress)
    (draft / "parity.json").write_text(json.dumps(facts, indent=2) + "\n")
    say(
        f"parity: in memory {facts['in_memory']['relative_difference']:.1e}, after reload "
        f"{facts['after_reload']['relative_difference']:.1e} of the logits' scale; rounding to "
        f"{facts['dtype']} {facts['rounding']:.1e}"
    )


def _find_recorded(name: str) -> str:
    """Find the teacher that a checkpoint names; an error tells how to name another place."""
    try:
        return str(resolve_folder(locate_teacher(name)))
    except LrcError as error:
        raise type(error)(
            f"{error} If the teacher lies elsewhere now, name its folder with --teacher (convert_ckpt.py: "
            "--raw-model-name)."
        ) from error
