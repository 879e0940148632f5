"""The benchmarks of `lrc evaluate --tasks`: task files, data, both models scored, one table of both."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrc.errors import DataError
from lrc.evaluation.task_files import MMLU, STOCK, TaskFiles, find_data, stock_files, write_task_files
from lrc.evaluation.task_names import check_names, chosen_tasks
from lrc.evaluation.task_scores import Estimate, average, estimate, paired_difference
from lrc.evaluation.tasks import ModelScores, TaskSuite, chosen_metric, load_suite, open_manager, score_suite
from lrc.models.compute import choose_device, choose_dtype, dtype_name, keep_freed_memory
from lrc.models.folder import ModelTensors
from lrc.models.teacher import load_model, load_tokenizer
from lrc.verbs.lm_eval_extra import require_lm_eval
from lrc.verbs.progress import say
from lrc.verbs.sources import locate_benchmarks
from lrc.verbs.task_settings import TaskSettings
from lrc.verbs.tqdm_lines import requests_as_lines

TRUNCATED = (
    "requests (of generated answers: batches) are longer than the model's context and lost their beginning; their "
    "scores say little"
)


@dataclass(frozen=True, kw_only=True)
class OpenTasks:
    """Tasks with their data, checked, and the settings they were opened with."""

    suite: TaskSuite
    settings: TaskSettings


@contextmanager
def open_tasks(settings: TaskSettings) -> Iterator[OpenTasks]:
    """Check names and data and load the tasks; local task files that nobody keeps are deleted at the end.

    Raises:
        ConfigError: An unknown task, or one that runs code without permission.
        DataError: Data that is missing or does not fit.
    """
    require_lm_eval()
    assert settings.tasks is not None
    names, left_out = chosen_tasks(settings.tasks, allow_code=settings.allow_code)
    if left_out:
        say(f"Left out: {', '.join(left_out)}. They run the code that the model writes; --allow-code adds them.")
    options: dict[str, Any] = {"num_fewshot": settings.num_fewshot, "allow_code": settings.allow_code}
    if settings.data_dir is None:
        manager = open_manager(None)
        check_names(names, manager.all_tasks)
        yield OpenTasks(suite=load_suite(manager, names, files=None, **options), settings=settings)
        return
    with tempfile.TemporaryDirectory(prefix="lrc-tasks-") as scratch:
        files = _local_files(settings, names, Path(scratch))
        suite = load_suite(open_manager(files.folder), names, files=files, **options)
        yield OpenTasks(suite=suite, settings=settings)


def _local_files(settings: TaskSettings, names: list[str], scratch: Path) -> TaskFiles:
    """Write the task files; they are checked in `scratch` first, so that bad data leaves nothing behind."""
    single = [name for name in names if name != MMLU]
    index = None
    if any(name not in STOCK for name in single):
        manager = open_manager(None)
        check_names(names, manager.all_tasks)
        index = {name: entry.yaml_path for name, entry in manager.task_index.items() if entry.kind.name == "TASK"}
    stock = stock_files(single, index)
    assert settings.data_dir is not None
    data_dir = Path(locate_benchmarks(settings.data_dir))
    find_data(data_dir, names)
    trial, cache = scratch / "tasks", scratch / "cache"
    trial.mkdir()
    files = write_task_files(trial, data_dir, names, stock=stock, cache_dir=cache)
    if settings.write_tasks is None:
        return files
    try:
        settings.write_tasks.mkdir(parents=True, exist_ok=True)
        kept = write_task_files(settings.write_tasks, data_dir, names, stock=stock)
    except OSError as error:
        raise DataError(f"The task files can't be written to {settings.write_tasks}: {error}.") from error
    say(f"Task files for `lm_eval --include_path {kept.folder}`.")
    return files


def score_tasks(tasks: OpenTasks, models: Mapping[str, tuple[str, Path]], *, compute_dtype: str) -> dict[str, Any]:
    """Score each model and compare them item by item.

    Args:
        tasks: From `open_tasks`.
        models: `student`, and `teacher` if there is one -> name and folder.
        compute_dtype: As the recipe's `evaluate.compute_dtype`; `auto` is the stored one, where that isn't slow.

    Returns:
        The section `tasks` of results.json.
    """
    suite, settings = tasks.suite, tasks.settings
    keep_freed_memory()
    device = choose_device("auto")
    batch_size: int | str = settings.batch_size
    if batch_size != "auto":
        batch_size = int(batch_size)
    elif device.type == "cpu":
        batch_size = 1  # the search for the largest batch ends in a killed process where memory is the machine's
    scores: dict[str, ModelScores] = {}
    dtypes = {}
    for role, (_, folder) in models.items():
        dtype = _dtype(folder, device, compute_dtype)
        dtypes[role] = dtype_name(dtype)
        model = load_model(str(folder), dtype=dtype, device=device)
        with requests_as_lines(role):
            scores[role] = score_suite(
                suite, model, load_tokenizer(folder), batch_size=batch_size, limit=settings.limit
            )
        del model
        if count := scores[role].num_truncated:
            say(f"note: {role}: {count} {TRUNCATED}")
    return {
        "models": {role: name for role, (name, _) in models.items()},
        "data": settings.data_dir or "hub",
        "limit": settings.limit,
        "batch_size": batch_size,
        "dtype": dtypes,
        "truncated": {role: found.num_truncated for role, found in scores.items()},
        **compare(suite, scores),
        "metrics": {role: found.metrics for role, found in scores.items()},
        "command": _command(settings, suite, models["student"][1], dtypes["student"], batch_size, device),
    }


def compare(suite: TaskSuite, scores: Mapping[str, ModelScores]) -> dict[str, Any]:
    """Return a row a task (`scores`) and their `average`, or None where a task has no score that is a mean."""
    rows, means = [], []
    for name in suite.names:
        metric = chosen_metric(name, scores["student"])
        row = _estimates(suite, name, metric, scores)
        means.append(row)
        rows.append(
            {
                "task": name,
                "metric": metric,
                "items": sum(len(scores["student"].prompts[leaf]) for leaf in suite.leaves(name)),
                "num_fewshot": suite.num_fewshot(name),
                **_as_json(row),
            }
        )
    roles = [role for role in (*scores, "difference") if all(row[role] is not None for row in means)]
    total = {role: average([entry for row in means if (entry := row[role]) is not None]) for role in roles}
    is_mean = all(row["student"] is not None and row["student"].standard_error is not None for row in means)
    return {"scores": rows, "average": _as_json(total) if len(rows) > 1 and is_mean else None}


def _estimates(
    suite: TaskSuite, name: str, metric: str, scores: Mapping[str, ModelScores]
) -> dict[str, Estimate | None]:
    leaves = suite.leaves(name)
    parts = {
        role: [found.outcomes[leaf][metric] for leaf in leaves]
        for role, found in scores.items()
        if all(metric in found.outcomes[leaf] for leaf in leaves)
    }
    if len(parts) < len(scores):  # no outcome an item: perplexities
        plain = {
            role: Estimate(value=found.metrics[name][metric], standard_error=None) for role, found in scores.items()
        }
        return {**plain, "difference": None}
    is_pooled = suite.is_pooled(name, metric)
    found: dict[str, Estimate | None] = {
        role: estimate(part) if is_pooled else average([estimate([outcomes]) for outcomes in part])
        for role, part in parts.items()
    }
    found["difference"] = None
    if "teacher" in parts:
        for leaf in leaves:
            assert scores["student"].prompts[leaf] == scores["teacher"].prompts[leaf], "both must see the same prompts"
        ours, theirs = parts["student"], parts["teacher"]
        each = [paired_difference([one], [other]) for one, other in zip(ours, theirs, strict=True)]
        found["difference"] = paired_difference(ours, theirs) if is_pooled else average(each)
    return found


def _as_json(estimates: Mapping[str, Estimate | None]) -> dict[str, Any]:
    values: dict[str, Any] = {"teacher": None, "student": None, "difference": None}
    for role, found in estimates.items():
        if found is not None:
            values[role] = {"value": found.value, "standard_error": found.standard_error}
            if role == "difference":
                values[role]["interval"] = found.interval()
    return values


def _dtype(folder: Path, device: torch.device, wanted: str) -> torch.dtype:
    """Return the stored dtype, as the library's own command takes; the faster one where a 16-bit one may be slow.

    On a CPU any 16-bit dtype may be, on a GPU bfloat16.
    """
    if wanted != "auto":
        return choose_dtype(wanted, device)
    stored = ModelTensors(folder).dtype()
    may_be_slow = stored.itemsize < 4 if device.type == "cpu" else stored == torch.bfloat16
    return choose_dtype("auto", device) if may_be_slow else stored


def _command(
    settings: TaskSettings, suite: TaskSuite, folder: Path, dtype: str, batch_size: int | str, device: torch.device
) -> str:
    """Word the library's own command for the student's scores, and what it needs beside it."""
    local = settings.write_tasks or ("TASKS" if settings.data_dir else None)
    words = [
        "HF_ALLOW_CODE_EVAL=1 lm_eval --model hf" if settings.allow_code else "lm_eval --model hf",
        f"--model_args pretrained={folder},dtype={dtype}",
        f"--tasks {','.join(suite.names)}",
    ]
    words += [f"--include_path {local}"] if local else []
    words += [f"--num_fewshot {settings.num_fewshot}"] if settings.num_fewshot is not None else []
    words += [f"--limit {settings.limit}"] if settings.limit is not None else []
    words += ["--confirm_run_unsafe_code"] if settings.allow_code else []
    words += [f"--batch_size {batch_size} --device {device.type}"]
    words += ["(write them with --write-tasks TASKS)"] if settings.data_dir and not settings.write_tasks else []
    return " ".join(words)
