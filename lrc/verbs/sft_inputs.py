"""What `lrc sft` checks before the chats are read: settings, folders, the student, its tokenizer, its teacher."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrc.config import Recipe
from lrc.data.source_files import is_remote, list_files
from lrc.data.tokenizer_hash import tokenizer_sha256
from lrc.errors import CheckpointError, ConfigError
from lrc.export.folder import check_apart, check_target
from lrc.models.checkpoint import LRC_CONFIG
from lrc.models.compute import choose_device
from lrc.models.folder import resolve_folder
from lrc.models.isolation import check_isolation
from lrc.models.teacher import load_tokenizer, read_config
from lrc.models.text_tower import is_composite
from lrc.sft.chat_encoder import ChatEncoder
from lrc.verbs.sources import locate_teacher

RUN_FACTS = "run.json"
"""In the work folder: what a resumed run must share with the one that was cut short."""


@dataclass(frozen=True, kw_only=True)
class SftInputs:
    """What was checked before the expensive part."""

    out: Path
    work: Path
    """Hidden beside `out`: chats, checkpoints and log until the folder is written."""
    student: Path
    teacher: Path | None
    """None: plain fine-tuning."""
    tokenizer: Any
    encoder: ChatEncoder
    resume: bool
    overwrite: bool
    """Whether an earlier result may be replaced; a run that goes on does what it was begun with."""
    stored: dict[str, Any] = field(default_factory=dict)
    """What a run that is to go on was begun with; of a new one nothing."""


def check_inputs(recipe: Recipe, *, resume: str | None, overwrite: bool) -> SftInputs:
    """Check everything that can be wrong but the chats, cheapest first.

    Args:
        recipe: The run.
        resume: `auto` or None.
        overwrite: Whether an earlier result may be replaced.

    Raises:
        ConfigError, DataError, CheckpointError: Something is; nothing was written.
    """
    settings, run = recipe.sft, Path(recipe.run)
    out, work = run / "sft", run / ".sft"
    require_data(recipe)
    if resume not in (None, "auto"):
        raise ConfigError(f"--resume must be auto, found {resume!r}: a run goes on from its newest checkpoint.")
    if resume is not None and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite deletes it. Give one of the two.")
    begun = any(work.glob("checkpoint-*"))
    stored = _stored_facts(work) if begun and resume is not None else {}
    overwrite = overwrite or bool(stored.get("overwrite"))
    check_target(out, overwrite=overwrite)
    if begun and resume is None and not overwrite:
        raise ConfigError(f"{work} holds checkpoints of a run that was cut short. Use --resume auto or --overwrite.")
    choose_device(settings.device, setting="sft.device")
    student = student_folder(recipe)
    config = read_config(str(student), trust_remote_code=recipe.trust_remote_code)
    if is_composite(config):
        raise ConfigError(
            f"sft.model must be a plain causal LM as lrc convert writes it; {student} has several towers."
        )
    if settings.packing:
        check_isolation(config, setting="sft.packing")
    tokenizer, encoder = chat_encoder(student, trust_remote_code=recipe.trust_remote_code)
    teacher = None
    if settings.teacher_kl > 0:
        teacher = resolve_folder(locate_teacher(recipe.teacher))
        _check_teacher(teacher, config, tokenizer, trust_remote_code=recipe.trust_remote_code)
    read = [student, *([teacher] if teacher else []), *chat_files(settings.data), *chat_files(settings.held_out)]
    for folder in (out, work):
        check_apart(folder, read)
    return SftInputs(
        out=out,
        work=work,
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        encoder=encoder,
        resume=begun and resume is not None,
        overwrite=overwrite,
        stored=stored,
    )


def _stored_facts(work: Path) -> dict[str, Any]:
    path = work / RUN_FACTS
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def require_data(recipe: Recipe) -> str:
    """Return `sft.data`.

    Raises:
        ConfigError: The recipe names no chats.
    """
    if recipe.sft.data is None:
        raise ConfigError("sft.data must name the chats to learn from (file, folder, glob or URL), and names none.")
    return recipe.sft.data


def chat_files(source: str | None) -> list[Path]:
    """List the files of chats that lie on this machine.

    Raises:
        DataError: There is none.
    """
    return [] if source is None or is_remote(source) else [Path(file.path) for file in list_files(source)]


def student_folder(recipe: Recipe) -> Path:
    """Find the student: what `sft.model` names, or `RUN/convert`.

    Raises:
        ConfigError, CheckpointError: It is no student.
    """
    name = recipe.sft.model or str(Path(recipe.run) / "convert")
    if (Path(name) / LRC_CONFIG).is_file() and not (Path(name) / "config.json").is_file():
        raise ConfigError(f"{name} is a training checkpoint, not a student. Make one: lrc convert {name} OUT.")
    if recipe.sft.model is None and not Path(name).is_dir():
        raise ConfigError(
            f"The student must lie in {name}, but there is no such folder. Run lrc convert, or name one: sft.model=..."
        )
    return resolve_folder(locate_teacher(name))


def chat_encoder(student: Path, *, trust_remote_code: bool = False) -> tuple[Any, ChatEncoder]:
    """Load the student's tokenizer and make an encoder of it.

    Raises:
        DataError: It has no chat template.
        CheckpointError: Its files are damaged.
    """
    tokenizer = load_tokenizer(student, trust_remote_code=trust_remote_code)
    return tokenizer, ChatEncoder(tokenizer, _end_ids(student, tokenizer))


def _end_ids(folder: Path, tokenizer: Any) -> set[int]:
    """Ids that end an answer: the tokenizer's and those that generation stops at."""
    found = _generation_settings(folder / "generation_config.json").get("eos_token_id")
    listed = found if isinstance(found, list) else [found]
    own = None if tokenizer is None else tokenizer.eos_token_id
    return {token for token in [*listed, own] if isinstance(token, int)}


def _generation_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} must be JSON, but can't be read as such: {error}. Copy it anew.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(found).__name__}. Copy it anew.")
    return found


def _check_teacher(folder: Path, config: Any, tokenizer: Any, *, trust_remote_code: bool) -> None:
    """Check that teacher and student speak of the same tokens."""
    theirs = read_config(str(folder), trust_remote_code=trust_remote_code).get_text_config().vocab_size
    if theirs != config.vocab_size:
        raise ConfigError(
            f"sft.teacher_kl compares next tokens, so teacher and student must have one vocabulary; {folder} has "
            f"{theirs} tokens, the student {config.vocab_size}. Name the student's own teacher, or set sft.teacher_kl=0"
            "."
        )
    teacher_tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if teacher_tokenizer is not None and tokenizer_sha256(teacher_tokenizer) != tokenizer_sha256(tokenizer):
        raise ConfigError(
            f"sft.teacher_kl compares next tokens, but the tokenizer of {folder} is not the student's. Name the "
            "student's own teacher, or set sft.teacher_kl=0."
        )
