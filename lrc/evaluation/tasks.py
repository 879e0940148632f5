"""Benchmarks through lm-evaluation-harness: load tasks once, score one or more models on them, keep every item.

The library is imported inside the functions: it is an extra, and its index of tasks takes long to read.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrc.errors import DataError
from lrc.evaluation.task_files import TaskFiles
from lrc.evaluation.task_names import METRICS, OTHER_METRIC
from lrc.evaluation.task_seeds import OTHER_SEED, RandomState, library_seeds, random_state

TRUNCATION_MARKS = ("exceeds model's maximum length", "Left truncation applied")
"""In the library's warnings that the beginning of a prompt was cut off."""


@dataclass(frozen=True, kw_only=True)
class TaskSuite:
    """Tasks that are loaded with their data, ready to be scored."""

    names: list[str]
    """As asked for; a group counts as one."""
    loaded: Any
    """What the library's task manager returned."""
    allow_code: bool
    """Whether the model's code may be run."""
    random_state: RandomState
    """Where the library's random numbers stood when the tasks were loaded; each model's scoring goes on from there."""

    def leaves(self, name: str) -> list[str]:
        """Return the single tasks of a name: itself, or the members of a group, in the library's order."""
        group = self.loaded["groups"].get(name)
        return [name] if group is None else [task.task_name for task in group.get_all_tasks()]

    def is_pooled(self, name: str, metric: str) -> bool:
        """Tell whether a group's score counts each item the same, not each of its tasks.

        Args:
            name: Task or group.
            metric: Metric and filter.
        """
        group = self.loaded["groups"].get(name)
        own = [] if group is None else group.aggregate_metric_list or []
        measure, _, chosen = metric.partition(",")
        return all(
            entry.weight_by_size
            for entry in own
            if entry.metric == measure and (entry.filter_list is None or chosen in entry.filter_list)
        )

    def num_fewshot(self, name: str) -> int:
        """Return how many examples a prompt of the task has."""
        return int(self.loaded["tasks"][self.leaves(name)[0]].config.num_fewshot)


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What one model scored."""

    metrics: dict[str, dict[str, float]]
    """Task or group -> metric and filter -> value, as the library reports them."""
    outcomes: dict[str, dict[str, list[float]]]
    """Single task -> metric and filter -> each item's outcome, in the order of the items."""
    prompts: dict[str, list[str]]
    """Single task -> the hash of each item's prompt, to pair items by."""
    num_truncated: int = 0
    """Requests (of generated answers: batches) longer than the model's context, which lost their beginning."""


def open_manager(folder: Path | None) -> Any:
    """Return the library's task manager: of our task files alone, or of all stock tasks (seconds)."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_defaults=False, include_path=str(folder)) if folder else TaskManager()


def load_suite(
    manager: Any, names: Sequence[str], *, num_fewshot: int | None, allow_code: bool, files: TaskFiles | None
) -> TaskSuite:
    """Load tasks with their data and check every row of local files.

    Args:
        manager: From `open_manager`.
        names: Tasks and groups.
        num_fewshot: Examples in each prompt, but of tasks that say 0; None: what the task says, else 0.
        allow_code: Whether tasks may run the model's code.
        files: The local task files, or None if the data comes from the hub.

    Raises:
        DataError: The data can't be fetched, does not fit its task, or lacks examples for few-shot prompts.
    """
    origin = "its data on the hub" if files is None else str(files.folder)
    with _quiet(), _code_execution(allow_code), library_seeds():
        try:
            loaded = manager.load(list(names))
            state = random_state()
        except Exception as error:  # datasets, jinja and YAML errors have no common base
            hint = " Offline, name a folder of local data with --data-dir." if files is None else ""
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(f"The tasks {', '.join(names)} can't be loaded from {origin}: {reason}.{hint}") from error
        for name, task in loaded["tasks"].items():
            if task.config.num_fewshot is None or (num_fewshot is not None and task.config.num_fewshot != 0):
                task.set_config(key="num_fewshot", value=num_fewshot or 0)
            _check_examples(name, task)
        if files is not None:
            for name, task in loaded["tasks"].items():
                _check_rows(task, *files.lines[name])
    shown = _table_names(manager, loaded, names)
    return TaskSuite(names=shown, loaded=loaded, allow_code=allow_code, random_state=state)


def _table_names(manager: Any, loaded: Any, names: Sequence[str]) -> list[str]:
    """Put the tasks of a tag, or of a group without a score of its own, in its place."""
    shown: dict[str, None] = {}
    for name in names:
        group = loaded["groups"].get(name)
        if name in loaded["tasks"] or (group is not None and group.has_aggregation):
            shown[name] = None
        elif group is not None:
            shown.update(dict.fromkeys(task.task_name for task in group.get_all_tasks()))
        else:
            shown.update(dict.fromkeys(sorted(manager.task_index[name].tags)))
    return list(shown)


def _check_examples(name: str, task: Any) -> None:
    """Refuse few-shot prompts whose examples would come from the rows that are scored."""
    own = task.config.fewshot_config
    has_own = own is not None and getattr(own, "samples", None) is not None
    split = task.config.fewshot_split or task.config.training_split or task.config.validation_split
    scored = task.config.test_split or task.config.validation_split
    if task.config.num_fewshot > 0 and not has_own and split in (None, scored):
        raise DataError(
            f"{name} puts {task.config.num_fewshot} examples into each prompt, and they must not be rows that are "
            f"scored. Put them into {name}_train.jsonl of --data-dir (docs/evaluation.md), or use --num-fewshot 0."
        )


def _check_rows(task: Any, path: Path, lines: list[int]) -> None:
    """Make the prompt and answers of every row, as the scoring will."""
    rows = task.eval_docs
    if len(rows) != len(lines):
        raise DataError(
            f"{path} must hold the rows that the task {task.task_name} scores and no others, but of its {len(lines)} "
            f"rows the task takes {len(rows)}. Look at what its process_docs asks for, and leave the others out."
        )
    for line, row in zip(lines, rows, strict=True):
        try:
            text, target = task.doc_to_text(row), task.doc_to_target(row)
            choices = task.doc_to_choice(row) if task.OUTPUT_TYPE == "multiple_choice" else None
        except Exception as error:  # whatever a task's own code raises
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}:{line}: the row does not fit the task {task.task_name}: {reason}.") from error
        answer = text if isinstance(text, int) else target  # winogrande's answer says which text is the right one
        if isinstance(answer, int) and choices is not None and not 0 <= answer < len(choices):
            raise DataError(f"{path}:{line}: the answer must be one of {len(choices)} choices, found {answer}.")
        if isinstance(answer, str) and choices is not None and answer not in choices:
            raise DataError(f"{path}:{line}: the answer must be one of {choices}, found {answer!r}.")


def score_suite(
    suite: TaskSuite, model: Any, tokenizer: Any, *, batch_size: int | str, limit: int | None
) -> ModelScores:
    """Score a model on the tasks, all requests in one pass as the library's own command does.

    Args:
        suite: From `load_suite`.
        model: Stock causal LM on its device.
        tokenizer: Its tokenizer.
        batch_size: Requests at once; "auto": the largest that fits.
        limit: Items of each single task; None: all.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    for task in suite.loaded["tasks"].values():
        task.set_fewshot_seed(seed=OTHER_SEED)  # or the second model would be shown other examples
    with _quiet(), _code_execution(suite.allow_code), library_seeds(suite.random_state), _truncations() as truncated:
        found = evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            suite.loaded,
            limit=limit,
            log_samples=True,
            confirm_run_unsafe_code=suite.allow_code,
        )
    samples = found["samples"]
    return ModelScores(
        metrics={name: _numbers(values) for name, values in found["results"].items()},
        outcomes={name: _outcomes(rows) for name, rows in samples.items()},
        prompts={name: _prompts(rows) for name, rows in samples.items()},
        num_truncated=truncated.count,
    )


def chosen_metric(name: str, scores: ModelScores) -> str:
    """Return the metric and filter that tables compare the task by: METRICS', else accuracy, else its first."""
    known = scores.metrics[name]
    wanted = (METRICS.get(name, OTHER_METRIC), OTHER_METRIC)
    return next((metric for metric in wanted if metric in known), next(iter(known)))


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Leave out names, counts and standard errors: those are computed from the items."""
    return {
        key: float(value)
        for key, value in values.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }


def _prompts(rows: list[dict[str, Any]]) -> list[str]:
    """Return one hash an item; with several filters an item has several rows."""
    return list({row["doc_id"]: row["prompt_hash"] for row in rows}.values())


def _outcomes(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Sort the items' outcomes by metric and filter; a metric that is no number an item (perplexity) is left out."""
    outcomes: dict[str, list[float]] = {}
    for row in rows:
        for metric in row["metrics"]:
            if isinstance(row[metric], int | float):
                outcomes.setdefault(f"{metric},{row['filter']}", []).append(float(row[metric]))
    return outcomes


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's remarks (every task file of ours overrides a stock one) and dataset bars off the terminal."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    logger, had_bars = logging.getLogger("lm_eval"), is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            enable_progress_bar()


class _Truncations(logging.Filter):
    """Counts the library's warnings that a prompt was cut, and keeps all warnings off the terminal."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.count += any(mark in record.getMessage() for mark in TRUNCATION_MARKS)
        return record.levelno >= logging.ERROR


@contextmanager
def _truncations() -> Iterator[_Truncations]:
    """Count the prompts that the library's model cuts."""
    logger, counted = logging.getLogger("lm_eval.models.huggingface"), _Truncations()
    level = logger.level
    logger.setLevel(logging.WARNING)
    logger.addFilter(counted)
    try:
        yield counted
    finally:
        logger.removeFilter(counted)
        logger.setLevel(level)


@contextmanager
def _code_execution(allowed: bool) -> Iterator[None]:
    """Set the switch that the metric of the code tasks asks for, only while they are loaded and scored."""
    name, before = "HF_ALLOW_CODE_EVAL", os.environ.get("HF_ALLOW_CODE_EVAL")
    if allowed:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
