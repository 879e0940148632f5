"""The published conversion command: its flags, and the call of `lrc convert` that they stand for.

`convert_ckpt.py` calls `main`; `translate` is pure. Checkpoints written here carry `lrc_config.json`, which already
says all that the flags repeat: a flag that is not given is taken from there, one that is given goes on to `convert`,
which refuses a contradiction. For the original code's checkpoints the flags and their defaults are all there is.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrc.config import StudentConfig
from lrc.errors import ConfigError
from lrc.export.original_student import OriginalStudent
from lrc.models.set_aside import find_set_aside
from lrc.verbs.published_flags import flag, parse_flags, run_command, spell

PROGRAM = "convert_ckpt.py"


@dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    """Convert a Low-Rank Clone checkpoint into a plain Hugging Face folder."""

    ckpt_path: str | None = flag(None, "checkpoint folder or .safetensors file; required")
    save_path: str | None = flag(None, "folder that the student is written to; required")
    target_hidden_size: int = flag(1024, "width of the student's residual stream")
    raw_model_name: str | None = flag(None, "folder or hub id of the teacher; needed for the original's checkpoints")
    target_rms_norm_eps: float = flag(1e-5, "eps that the original code trained with (default: the teacher's)")
    tie_word_emb_proj: bool = flag(False, "one projection for embedding and head")
    tie_n: int = flag(-1, "layers that share projections; only -1, 0 and 1 (none)")
    use_aux_loss: bool = flag(True, "not used: losses do not change the student")
    use_std_like_attn: bool = flag(False, "not supported")
    gpus: int = flag(1, "not used: the merge goes shard by shard on the CPU")
    check_data_cls_loss: bool = flag(False, "not used: losses do not change the student")
    use_in_out_mlp: bool = flag(False, "True: io ffn (gate and up share a projection), False: all ffn")
    use_all_attn: bool = flag(False, "True: all attn, False: io attn (q, k, v share a projection)")
    overwrite: bool = flag(False, "replace an existing --save-path; not in the original")
    dry_run: bool = flag(False, "check everything, write nothing; not in the original")


FIELD_OF_FLAG = {
    "target_hidden_size": "hidden_size",
    "use_all_attn": "attention_projections",
    "use_in_out_mlp": "ffn_projections",
    "tie_word_emb_proj": "tie_embedding_projection",
}
"""The flags that describe the student -> field of `StudentConfig`."""

UNUSED = {
    "use_aux_loss": "losses do not change the student",
    "check_data_cls_loss": "losses do not change the student",
    "gpus": "the merge goes shard by shard on the CPU",
}
"""Flags that are accepted and do nothing, with the reason that is printed when one is given."""


@dataclass(frozen=True, kw_only=True)
class ConvertCall:
    """The arguments of `lrc convert` that a published command line stands for."""

    checkpoint: Path
    out: Path
    teacher: str | None
    student: StudentConfig | OriginalStudent | None
    overwrite: bool
    dry_run: bool
    notes: tuple[str, ...]
    """Lines for stderr: flags that were given and do nothing here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the published conversion command; return its exit code."""
    return run_command(lambda: _convert(sys.argv[1:] if argv is None else argv))


def translate(argv: Sequence[str], recorded: StudentConfig | None = None) -> ConvertCall:
    """Translate the published flags into the arguments of `convert`.

    Args:
        argv: The command line without the program's name.
        recorded: The student that `lrc_config.json` beside the weights describes; None for the original's checkpoints.

    Raises:
        ConfigError: Flags that are unknown, missing, or can't be honoured.
    """
    flags, given = parse_flags(argv, ConvertFlags, program=PROGRAM)
    problems = [f"{spell(name)} is required" for name in ("ckpt_path", "save_path") if not getattr(flags, name)]
    if flags.tie_n > 1:
        problems.append(f"--tie-n {flags.tie_n} is not supported (the original refuses it too)")
    if flags.use_std_like_attn:
        problems.append("--use-std-like-attn True is not supported (the original refuses it too)")
    if flags.target_hidden_size < 1:
        problems.append(f"--target-hidden-size must be at least 1, found {flags.target_hidden_size}")
    if problems:
        raise ConfigError(f"{PROGRAM}: " + "; ".join(problems) + ".")
    assert flags.ckpt_path is not None and flags.save_path is not None
    unused = UNUSED if recorded is None else UNUSED | {"target_rms_norm_eps": "training kept the teacher's eps"}
    return ConvertCall(
        checkpoint=Path(flags.ckpt_path),
        out=Path(flags.save_path),
        teacher=flags.raw_model_name,
        student=_describe_student(flags, given, recorded),
        overwrite=flags.overwrite,
        dry_run=flags.dry_run,
        notes=tuple(f"{spell(name)} is not used: {reason}." for name, reason in unused.items() if name in given),
    )


def _describe_student(
    flags: ConvertFlags, given: frozenset[str], recorded: StudentConfig | None
) -> StudentConfig | OriginalStudent | None:
    described = StudentConfig(
        hidden_size=flags.target_hidden_size,
        attention_projections="all" if flags.use_all_attn else "io",
        ffn_projections="io" if flags.use_in_out_mlp else "all",
        tie_embedding_projection=flags.tie_word_emb_proj,
    )
    if recorded is None:
        is_eps_given = "target_rms_norm_eps" in given
        return OriginalStudent(sizes=described, rms_norm_eps=flags.target_rms_norm_eps) if is_eps_given else described
    stated: dict[str, Any] = {
        field: getattr(described, field) for name, field in FIELD_OF_FLAG.items() if name in given
    }
    return replace(recorded, **stated) if stated else None


def _convert(argv: Sequence[str]) -> None:
    call = translate(argv)
    recorded = _read_recorded_student(find_set_aside(call.checkpoint))
    if recorded is not None:
        call = translate(argv, recorded)
    for note in call.notes:
        print(f"note: {note}", file=sys.stderr)
    from lrc.verbs.convert import convert

    out = convert(
        call.checkpoint,
        call.out,
        teacher=call.teacher,
        student=call.student,
        overwrite=call.overwrite,
        dry_run=call.dry_run,
    )
    if not call.dry_run:
        print(f"student: {out}")


def _read_recorded_student(checkpoint: Path) -> StudentConfig | None:
    """Return the student that `lrc_config.json` in or beside the checkpoint describes, None if there is no such file.

    Raises:
        CheckpointError: The file is damaged.
    """
    from lrc.models.checkpoint import read_facts

    facts = read_facts(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    return None if facts is None else StudentConfig(**facts["student"])
