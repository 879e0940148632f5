"""`lrc export --as int8`: a student with int8 weights that stock transformers loads, beside torchao."""

from functools import partial
from pathlib import Path

from lrc.export.folder import check_target
from lrc.export.int8 import check_int8, write_int8
from lrc.models.folder import resolve_folder
from lrc.verbs.progress import say
from lrc.verbs.sft_facts import carry_sft_facts
from lrc.verbs.sources import locate_teacher


def export_int8(student: str, out: Path, *, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Quantise a student's linear layers to int8 and publish it as `out`, with `int8_parity.json`.

    Args:
        student: Folder or hub id, or `embedded:...` for the demo's teacher.
        out: Folder of the quantised student.
        overwrite: Replace `out`.
        dry_run: Check everything, write nothing.

    Returns:
        `out`.

    Raises:
        ConfigError, CheckpointError: Bad input, before anything is written.
        NumericsError: It does not reload exactly or is far from the student; nothing is published.
    """
    check_target(out, overwrite=overwrite, inputs=[Path(student)])
    folder = resolve_folder(locate_teacher(student))
    config = check_int8(folder)
    if dry_run:
        say(f"dry run: {student} ({config.model_type}) can be quantised to int8: good")
        return out
    carry = partial(carry_sft_facts, folder)
    return write_int8(folder, out, config=config, overwrite=overwrite, say=say, finish=carry)
