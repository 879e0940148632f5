"""`lrc export --as gguf`: a student as one GGUF file, written and proven by llama.cpp's own code."""

from pathlib import Path

from lrc.embedded.converter import gguf_converter
from lrc.errors import ConfigError
from lrc.export.folder import check_target
from lrc.export.gguf import check_gguf, write_proven_gguf
from lrc.export.serving import LLAMA_CPP, read_config_file, verdicts
from lrc.models.folder import resolve_folder
from lrc.verbs.progress import say
from lrc.verbs.sources import locate_teacher


def export_gguf(student: str, out: Path, *, kind: str, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Write `out/NAME-KIND.gguf` and `out/gguf_parity.json`; the converter is fetched when the first file is written.

    Args:
        student: Folder or hub id, or `embedded:...` for the demo's teacher.
        out: Folder of the file.
        kind: f32, f16, q8_0, q5_0 or q4_k_m.
        overwrite: Replace `out`, but no file of another type.
        dry_run: Check everything, write nothing.

    Returns:
        Path of the file.

    Raises:
        ConfigError, CheckpointError: Bad input, before anything is written.
        NumericsError: llama.cpp computes something else than transformers; nothing is published.
    """
    _check_other_types(out, kind)
    check_target(out, overwrite=overwrite, inputs=[Path(student)])
    folder = resolve_folder(locate_teacher(student))
    config = check_gguf(folder, kind)
    if dry_run:
        said = f"dry run: {student} ({config.model_type}) can be written as {kind}"
        say(f"{said}{_doubt(folder) or ': good'}")
        return out
    return write_proven_gguf(
        folder, out, kind=kind, converter=gguf_converter(report=say), config=config, overwrite=overwrite, say=say
    )


def _check_other_types(out: Path, kind: str) -> None:
    """Refuse to replace a file of another type: the folder is replaced as a whole, and proven for one file."""
    others = sorted(path.name for path in out.glob("*.gguf") if not path.name.endswith(f"-{kind.upper()}.gguf"))
    if others:
        raise ConfigError(
            f"{out} holds {others[0]}, and a folder holds one file and its proof, so writing {kind} there would delete "
            f"it. Name another folder, such as {out}-{kind}."
        )


def _doubt(folder: Path) -> str:
    """What stands behind a dry run's answer where llama.cpp is not known to take the class; else nothing."""
    verdict = next(verdict for verdict in verdicts(read_config_file(folder), None) if verdict.engine == LLAMA_CPP)
    if verdict.answer == "as is":
        return ""
    if verdict.answer == "not known":
        return " by its sizes; class not known to be taken by llama.cpp; the converter decides"
    return f" by its sizes; {verdict.why}; the converter decides, {verdict.how} avoids that"
