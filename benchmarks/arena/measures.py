"""What is measured of a student at a point of its curve: each text, the stream's effective rank, benchmark tasks."""

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lrc.data.blocks import collate, open_blocks
from lrc.errors import ConfigError
from lrc.evaluation.agreement import measure_pair
from lrc.evaluation.effective_rank import best_stream_ranks, pair_stream_ranks
from lrc.evaluation.scorecard import text_bytes, text_windows
from lrc.evaluation.task_names import SEED
from lrc.models.pair_model import PairModel
from lrc.models.student import empty_student
from lrc.models.teacher import load_config, load_tokenizer
from lrc.verbs.evaluate_tasks import open_tasks, score_tasks
from lrc.verbs.sources import locate_benchmarks
from lrc.verbs.task_settings import TaskSettings

from .texts import MEASURED


@dataclass(frozen=True, kw_only=True)
class MeasuredText:
    """One text as both models read it."""

    windows: list[tuple[Tensor, Tensor]]
    num_bytes: int


def measured_texts(
    paths: Mapping[str, Path], teacher: Path, *, sequence_length: int, count: int
) -> dict[str, MeasuredText]:
    """Tokenise `count` windows of each text, spread evenly over it; special tokens are read but not predicted."""
    tokenizer, config = load_tokenizer(teacher), load_config(str(teacher))
    found = {}
    for role in (*MEASURED, "fresh"):
        blocks = open_blocks(str(paths[role]), tokenizer, sequence_length=sequence_length, vocab_size=config.vocab_size)
        batches = [collate([blocks.read(index)]) for index in spread_indexes(len(blocks), count)]
        windows = text_windows(batches, set(tokenizer.all_special_ids))
        found[role] = MeasuredText(windows=windows, num_bytes=text_bytes(windows, tokenizer))
    return found


def spread_indexes(length: int, count: int) -> list[int]:
    """Return `count` of `length` indexes at equal distances, or all: the front of a text is but a document or two."""
    return [length * place // count for place in range(count)] if count < length else list(range(length))


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Benchmarks that are scored at some points."""

    data: str
    """Folder with NAME.jsonl a task, or `embedded:benchmarks`."""
    limit: int | None
    """Items of each task."""

    def names(self) -> list[str]:
        """Return the published tasks that the folder has.

        Raises:
            ConfigError: It has none.
        """
        folder = Path(locate_benchmarks(self.data))
        found = [name for name in SEED if (folder / f"{name}.jsonl").is_file()]
        if not found:
            raise ConfigError(f"{self.data} must hold NAME.jsonl of at least one of {', '.join(SEED)}.")
        return found

    def score(self, model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
        """Return the accuracy of each task and their average, with standard errors."""
        settings = TaskSettings(tasks=",".join(self.names()), data_dir=self.data, limit=self.limit, num_fewshot=0)
        with tempfile.TemporaryDirectory(prefix="arena-") as scratch, open_tasks(settings) as tasks:
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            scored = score_tasks(tasks, {"student": ("student", Path(scratch))}, compute_dtype="auto")
        single = {row["task"]: row["student"] for row in scored["scores"]}
        mean = scored["average"]["student"] if scored["average"] else next(iter(single.values()))
        return {"average": mean, "tasks": single}


class PointMeasure:
    """Measures a pair at chosen steps; called by the training loop beside its own held-out measure."""

    def __init__(
        self,
        texts: Mapping[str, MeasuredText],
        *,
        steps: set[int],
        tokenizer: Any,
        tasks: Tasks | None,
        task_steps: set[int],
    ) -> None:
        """Keep what is measured where.

        Args:
            texts: By role.
            steps: Steps of the curve; the fresh text is measured at the last alone.
            tokenizer: The teacher's.
            tasks: Benchmarks, or None.
            task_steps: Steps that these are scored at.
        """
        self.texts, self.steps, self.tokenizer = texts, steps, tokenizer
        self.tasks, self.task_steps = tasks, task_steps

    def __call__(self, pair: PairModel, step: int) -> dict[str, Any]:
        if step not in self.steps:
            return {}
        began = time.monotonic()
        point: dict[str, Any] = {}
        for role in MEASURED:
            if role == "development":
                with pair_stream_ranks(pair) as ranks, best_stream_ranks(pair) as best:
                    point[role] = _text_measures(pair, self.texts[role])
                point |= {"effective_rank": ranks, "teacher_effective_rank": best}
            else:
                point[role] = _text_measures(pair, self.texts[role])
        if step == max(self.steps):
            point["fresh"] = _text_measures(pair, self.texts["fresh"])
        if self.tasks is not None and step in self.task_steps:
            point["cloze"] = self.tasks.score(merged_student(pair), self.tokenizer)
        return {"arena": {**point, "measure_seconds": time.monotonic() - began}}


def _text_measures(pair: PairModel, text: MeasuredText) -> dict[str, Any]:
    agreement = measure_pair(pair, text.windows)
    to_bits = agreement.positions / math.log(2) / max(1, text.num_bytes)
    return {
        **agreement.summary(),
        "bits_per_byte": agreement.cross_entropy * to_bits,
        "teacher_bits_per_byte": agreement.teacher_cross_entropy * to_bits,
    }


@torch.no_grad()
def merged_student(pair: PairModel) -> PreTrainedModel:
    """Build the stock model that the pair's student is, whatever method trains it."""
    student = empty_student(pair.student_config)
    tensors = {
        f"{part.prefix}{name}": tensor.detach().clone()
        for part in pair.parts()
        for name, tensor in part.student_tensors().items()
    }
    wanted = student.state_dict()
    student.load_state_dict({name: tensors[name] for name in wanted}, assign=True)
    assert isinstance(student, PreTrainedModel)
    return student
