"""`lrc evaluate`: a model folder, and its teacher if named, scored on held-out text."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lrc.config import EvaluateConfig
from lrc.data.blocks import open_blocks, ordered_batches
from lrc.errors import ConfigError, DataError
from lrc.evaluation.scorecard import card, continuations, score_text, text_bytes, text_windows
from lrc.models.checkpoint import versions
from lrc.models.compute import choose_device, choose_dtype
from lrc.models.folder import resolve_folder
from lrc.models.teacher import load_config, load_model
from lrc.training.metrics import format_seconds
from lrc.verbs.sources import locate_data, locate_teacher
from lrc.verbs.train import load_tokenizer


def evaluate(
    model: Path | str,
    *,
    out: Path,
    held_out: str,
    teacher: str | None = None,
    settings: EvaluateConfig,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Path:
    """Score a model and write `out/results.json`.

    Args:
        model: Folder or hub id of the student.
        out: Folder of the results.
        held_out: File, folder or glob of held-out JSON lines with `text` or `input_ids`.
        teacher: Model to compare with; None: no agreement measures.
        settings: How much to score.
        overwrite: Replace earlier results.
        dry_run: Check everything, write nothing.

    Returns:
        `out/results.json`.

    Raises:
        ConfigError, CheckpointError, DataError: Bad input, before anything is written.
    """
    results = out / "results.json"
    if results.exists() and not overwrite:
        raise ConfigError(f"{results} exists. Use --overwrite to replace it, or name another --out.")
    folder = resolve_folder(str(model))
    teacher_folder = resolve_folder(locate_teacher(teacher)) if teacher else None
    config = load_config(str(folder))
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ConfigError(f"{folder} must hold a tokenizer: bits per byte and samples need one.")
    if teacher_folder is not None and load_config(str(teacher_folder)).vocab_size != config.vocab_size:
        raise ConfigError(f"{teacher} and {model} must share a vocabulary; theirs differ in size.")
    blocks = open_blocks(
        locate_data(held_out), tokenizer, sequence_length=settings.sequence_length, vocab_size=config.vocab_size
    )
    batches = ordered_batches(blocks, tokens=settings.tokens, batch_size=1)
    windows = text_windows([batch.input_ids for batch in batches], set(tokenizer.all_special_ids))
    if not any((labels >= 0).any() for _, labels in windows):
        raise DataError(f"{held_out} holds no text to score.")
    if dry_run:
        print(f"dry run: {len(windows)} windows of {held_out}: good", file=sys.stderr)
        return results
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    student = load_model(str(folder), dtype=dtype, device=device)
    reference = load_model(str(teacher_folder), dtype=dtype, device=device) if teacher_folder else None
    windows = [(ids.to(device), labels.to(device)) for ids, labels in windows]
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        if done == total or done % max(1, total // 5) == 0:
            spent = time.monotonic() - began
            left = format_seconds(spent / done * (total - done))
            print(f"held out {done}/{total} windows  {done / spent:.2f} windows/s  ETA {left}", file=sys.stderr, flush=True)

    agreement, ranks = score_text(student, reference, windows, progress)
    num_bytes = text_bytes(windows, tokenizer)
    measured = {"positions": agreement.positions, "num_bytes": num_bytes}
    cards: dict[str, Any] = {"teacher": None}
    if reference is not None and teacher_folder is not None:
        cards["teacher"] = card(
            reference, teacher_folder, name=str(teacher), cross_entropy=agreement.teacher_cross_entropy, **measured
        )
    cards["student"] = card(student, folder, name=str(model), cross_entropy=agreement.cross_entropy, **measured)
    compared = reference is not None
    cards["student"] |= {
        "kl_to_teacher": agreement.kl if compared else None,
        "top1_agreement": agreement.top1_agreement if compared else None,
        "top5_agreement": agreement.top5_agreement if compared else None,
    }
    facts = {
        "held_out": {
            "source": held_out,
            "positions": agreement.positions,
            "bytes": num_bytes,
            "sequence_length": settings.sequence_length,
        },
        **cards,
        "effective_rank": ranks,
        "hidden_size": {
            "teacher": reference.config.hidden_size if reference is not None else None,  # type: ignore[union-attr]
            "student": config.hidden_size,
        },
        "samples": _samples(student, reference, tokenizer, settings),
        "versions": versions(),
        "machine": {
            "device": device.type,
            "threads": torch.get_num_threads(),
            "dtype": str(dtype).removeprefix("torch."),
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    draft = out / ".results.json.partial"
    draft.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(draft, results)
    return results


def _samples(student: Any, teacher: Any, tokenizer: Any, settings: EvaluateConfig) -> list[dict[str, str | None]]:
    options = {"count": settings.samples, "new_tokens": settings.sample_tokens}
    written = continuations(student, tokenizer, **options)
    reference = continuations(teacher, tokenizer, **options) if teacher is not None else [("", None)] * len(written)
    return [
        {"prompt": prompt, "teacher": theirs, "student": ours}
        for (prompt, ours), (_, theirs) in zip(written, reference, strict=True)
    ]
