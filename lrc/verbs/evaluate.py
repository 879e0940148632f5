"""`lrc evaluate`: a model folder, and its teacher if named, scored on held-out text, on benchmarks, or on both."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrc.config import EvaluateConfig, range_problems
from lrc.data.blocks import open_blocks, ordered_batches
from lrc.data.rows import resolve_files
from lrc.data.shards import MANIFEST
from lrc.data.tokenizer_hash import tokenizer_sha256
from lrc.errors import CheckpointError, ConfigError, DataError, NumericsError
from lrc.evaluation.scorecard import card, continuations, score_text, text_bytes, text_windows
from lrc.evaluation.task_names import chosen_tasks
from lrc.models.checkpoint import versions
from lrc.models.compute import choose_device, choose_dtype, dtype_name, keep_freed_memory
from lrc.models.folder import check_source, resolve_folder, weights_hash
from lrc.models.teacher import load_config, load_model, load_tokenizer
from lrc.training.beside import write_beside
from lrc.verbs.evaluate_tasks import open_tasks, score_tasks
from lrc.verbs.lm_eval_extra import require_lm_eval
from lrc.verbs.progress import progress_lines, say
from lrc.verbs.sources import EMBEDDED, locate_data, locate_teacher
from lrc.verbs.task_settings import NO_TASKS, TaskSettings


def evaluate(
    model: Path | str,
    *,
    out: Path,
    held_out: str | None = None,
    teacher: str | None = None,
    settings: EvaluateConfig,
    tasks: TaskSettings = NO_TASKS,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Path:
    """Score a model and write `out/results.json`.

    Args:
        model: Folder or hub id of the student, or `embedded:...` for the demo's teacher.
        out: Folder of the results.
        held_out: File, folder or glob of held-out JSON lines with `text` or `input_ids`; None: tasks only.
        teacher: Model to compare with; None: no agreement measures.
        settings: How much to score.
        tasks: Benchmarks to score; without names, held-out text only.
        overwrite: Replace earlier results.
        dry_run: Check everything, write nothing.

    Returns:
        `out/results.json`.

    Raises:
        ConfigError, CheckpointError, DataError: Bad input, before anything is written.
        NumericsError: A model's logits or a score are not finite; nothing is written.
    """
    results = out / "results.json"
    _check_output(results, overwrite=overwrite)
    problems = range_problems("evaluate", settings) + tasks.problems()
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    if held_out is None and tasks.tasks is None:
        raise ConfigError("Nothing is named to score. Use --held-out FILE, --tasks seed (or names), or both.")
    sources = _check_names(str(model), teacher, held_out, tasks)
    inputs = _check(sources, held_out, settings)
    with ExitStack() as stack:
        open_suite = None if tasks.tasks is None else stack.enter_context(open_tasks(tasks))
        # now that all else is right: weights from the hub may take hours
        models = {role: (name, resolve_folder(source)) for role, (name, source) in sources.items()}
        if dry_run:
            text = [f"{len(inputs.windows)} windows of {held_out}"] if inputs else []
            text += [f"tasks {', '.join(open_suite.suite.names)}"] if open_suite else []
            say(f"dry run: {'; '.join(text)}: good")
            return results
        facts: dict[str, Any] = {}
        if inputs is not None:
            facts = _score(models, inputs, settings)
            facts["held_out"] = {"source": held_out, **facts["held_out"], "sequence_length": settings.sequence_length}
        if open_suite is not None:
            facts["tasks"] = score_tasks(open_suite, models, compute_dtype=settings.compute_dtype)
        student_hash = weights_hash(models["student"][1])
        facts = {"student_hash": student_hash, "versions": versions(), "machine": _machine(), **facts}
    _write(results, facts)
    return results


def _check_output(results: Path, *, overwrite: bool) -> None:
    if results.exists() and not overwrite:
        raise ConfigError(f"{results} exists. Use --overwrite to replace it, or name another --out.")
    if results.parent.exists() and not results.parent.is_dir():
        raise ConfigError(f"The output {results.parent} must be a folder, but it is a file. Name another one.")


def _write(results: Path, facts: dict[str, Any]) -> None:
    try:
        text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise NumericsError(
            f"Every score in {results} must be finite, but one is NaN or infinite, so it is not written. Leave out the "
            "task that gives it, or look for what is damaged in the model."
        ) from error
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        write_beside(results, text)
    except OSError as error:
        raise CheckpointError(f"{results} can't be written: {error}. Earlier results are untouched.") from error


_Sources = dict[str, tuple[str, str]]
"""`student`, and `teacher` if there is one -> its name, and the folder or hub id that it stands for."""


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    tokenizer: Any
    windows: list[tuple[Tensor, Tensor]]


def _check_names(model: str, teacher: str | None, held_out: str | None, tasks: TaskSettings) -> _Sources:
    """Check what is named, as far as that goes before a model is fetched, and say where the models are."""
    names = {"student": model, **({"teacher": teacher} if teacher else {})}
    for name in names.values():
        if not name.startswith(EMBEDDED):
            check_source(name)
    if held_out is not None and not (Path(data := locate_data(held_out)) / MANIFEST).is_file():
        resolve_files(data)
    if tasks.tasks is not None:
        require_lm_eval()
        chosen_tasks(tasks.tasks, allow_code=tasks.allow_code)
    return {role: (name, locate_teacher(name)) for role, name in names.items()}


def _check(sources: _Sources, held_out: str | None, settings: EvaluateConfig) -> _Inputs | None:
    """Check configs, tokenizers and held-out text; None without text. The hub's weights are not fetched yet."""
    configs: dict[str, Any] = {}
    tokenizers: dict[str, Any] = {}
    for role, (_, source) in sources.items():
        folder = resolve_folder(source, weights=Path(source).is_dir())
        configs[role], tokenizers[role] = load_config(source), load_tokenizer(folder)
        if tokenizers[role] is None:
            raise ConfigError(f"{folder} must hold a tokenizer: text, samples and tasks need one.")
    if held_out is None:
        return None
    vocab_size, tokenizer = configs["student"].vocab_size, tokenizers["student"]
    if "teacher" in configs and configs["teacher"].vocab_size != vocab_size:
        names = " and ".join(sources[role][0] for role in ("teacher", "student"))
        raise ConfigError(f"{names} must share a vocabulary; theirs differ in size.")
    if "teacher" in tokenizers:
        _check_same_tokens(sources, tokenizers)
    length = settings.sequence_length
    blocks = open_blocks(
        locate_data(held_out), tokenizer, sequence_length=length, vocab_size=vocab_size, text_tokens=settings.tokens
    )
    batches = ordered_batches(blocks, tokens=settings.tokens, batch_size=1)
    windows = text_windows(batches, set(tokenizer.all_special_ids))
    if not any((labels >= 0).any() for _, labels in windows):
        raise DataError(f"{held_out} holds no text to score.")
    return _Inputs(tokenizer=tokenizer, windows=windows)


def _check_same_tokens(sources: _Sources, tokenizers: dict[str, Any]) -> None:
    """Check that an id is the same token to both models, for both read the student's ids.

    Special tokens may differ: they are not scored, and fine-tuning renames reserved ones. So may what else is in a
    tokenizer, which another class than the teacher's (an export as Llama) writes otherwise.

    Raises:
        ConfigError: An id stands for two tokens.
    """
    student, teacher = tokenizers["student"], tokenizers["teacher"]
    if tokenizer_sha256(student) == tokenizer_sha256(teacher):
        return
    special = student.added_tokens_decoder.keys() | teacher.added_tokens_decoder.keys()
    ours, theirs = ({index: token for token, index in each.get_vocab().items()} for each in (student, teacher))
    apart = sorted(index for index in (ours.keys() & theirs.keys()) - special if ours[index] != theirs[index])
    if apart:
        raise ConfigError(
            f"{sources['teacher'][0]} and {sources['student'][0]} must share a tokenizer to be compared on text, but "
            f"{len(apart)} of their token ids stand for other tokens: {apart[0]} is {theirs[apart[0]]!r} and "
            f"{ours[apart[0]]!r}. Name the student's own teacher, leave --teacher out, or score tasks alone."
        )


def _machine() -> dict[str, Any]:
    return {"device": choose_device("auto").type, "threads": torch.get_num_threads()}


def _score(models: dict[str, tuple[str, Path]], inputs: _Inputs, settings: EvaluateConfig) -> dict[str, Any]:
    """Load the models and measure what `results.json` holds of held-out text."""
    keep_freed_memory()
    device = choose_device("auto")
    dtype = choose_dtype(settings.compute_dtype, device)
    name, folder = models["student"]
    teacher, teacher_folder = models.get("teacher", (None, None))
    student = load_model(str(folder), dtype=dtype, device=device)
    reference = load_model(str(teacher_folder), dtype=dtype, device=device) if teacher_folder else None
    windows = [(ids.to(device), labels.to(device)) for ids, labels in inputs.windows]
    with progress_lines("held out", "windows") as progress:
        agreement, ranks = score_text(student, reference, windows, progress)
    num_bytes = text_bytes(windows, inputs.tokenizer)
    measured = {"positions": agreement.positions, "num_bytes": num_bytes}
    teacher_card, compared = None, reference is not None
    if reference is not None and teacher_folder is not None:
        loss = agreement.teacher_cross_entropy
        teacher_card = card(reference, teacher_folder, name=str(teacher), cross_entropy=loss, **measured)
    student_card = card(student, folder, name=name, cross_entropy=agreement.cross_entropy, **measured)
    student_card |= {
        "kl_to_teacher": agreement.kl if compared else None,
        "top1_agreement": agreement.top1_agreement if compared else None,
        "top5_agreement": agreement.top5_agreement if compared else None,
    }
    teacher_size = None if reference is None else reference.config.hidden_size
    return {
        "held_out": {"positions": agreement.positions, "bytes": num_bytes},
        "teacher": teacher_card,
        "student": student_card,
        "effective_rank": ranks,
        "hidden_size": {"teacher": teacher_size, "student": student.config.hidden_size},
        "samples": _samples(student, reference, inputs.tokenizer, settings),
        "machine": {**_machine(), "dtype": dtype_name(dtype)},
    }


def _samples(student: Any, teacher: Any, tokenizer: Any, settings: EvaluateConfig) -> list[dict[str, str | None]]:
    options = {"count": settings.samples, "new_tokens": settings.sample_tokens}
    written = continuations(student, tokenizer, **options)
    reference = continuations(teacher, tokenizer, **options) if teacher is not None else [("", None)] * len(written)
    return [
        {"prompt": prompt, "teacher": theirs, "student": ours}
        for (prompt, ours), (_, theirs) in zip(written, reference, strict=True)
    ]
