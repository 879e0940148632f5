"""Task files that let lm-evaluation-harness read a benchmark from a local file instead of the hub.

Each includes the stock task file and changes only where its data lies, so prompts and metrics stay the stock ones.
`lm_eval --include_path` takes the same files.
"""

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lrc.errors import ConfigError, DataError, nearest_name
from lrc.evaluation.task_rows import read_task_rows

STOCK = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "logiqa": "logiqa/logiqa.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "sciq": "sciq/sciq.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "humaneval": "humaneval/humaneval.yaml",
    "mbpp": "mbpp/mbpp.yaml",
}
"""Stock files below `lm_eval/tasks`; others are found in the library's index, which takes long to build."""
MMLU = "mmlu"
MMLU_FOLDER = "mmlu/default"
SPLITS = ("training_split", "validation_split", "test_split")


@dataclass(frozen=True, kw_only=True)
class TaskFiles:
    """What `write_task_files` wrote."""

    folder: Path
    """Folder of the task files."""
    lines: dict[str, tuple[Path, list[int]]] = field(default_factory=dict)
    """Leaf task -> the data file, and the line of each row that the task scores."""


def stock_files(names: Iterable[str], index: Mapping[str, Path | None] | None) -> dict[str, Path]:
    """Find the stock task file of each name.

    Args:
        names: Task names, without `mmlu`.
        index: Name -> file of all tasks; None if every name is in STOCK.

    Raises:
        ConfigError: A name is a group or has no file of its own.
    """
    found = {}
    for name in names:
        path = tasks_root() / STOCK[name] if name in STOCK else (index or {}).get(name)
        if path is None or not path.is_file():
            raise ConfigError(
                f"{name} is a group of tasks or has no task file, so its data can't be read from a folder. Name its "
                "single tasks, or leave --data-dir out."
            )
        found[name] = path
    return found


def tasks_root() -> Path:
    """Return the folder of the stock task files, without importing the library."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None, "the verb asks for the library first"
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def find_data(data_dir: Path, names: Sequence[str]) -> dict[str, Path]:
    """Find the file of the scored rows of each task, `NAME.jsonl`.

    Raises:
        DataError: The folder or files are missing; the message names all of them and the tasks that are there.
    """
    if not data_dir.is_dir():
        raise DataError(f"--data-dir must be a folder with one NAME.jsonl a task, but {data_dir} is none.")
    missing = [name for name in names if not (data_dir / f"{name}.jsonl").is_file()]
    if missing:
        there = ",".join(name for name in names if name not in missing)
        remedy = f" The others are there: --tasks {there}." if there else ""
        raise DataError(
            f"{data_dir} must hold {', '.join(f'{name}.jsonl' for name in missing)}, but does not. Put the rows there "
            f"(docs/evaluation.md).{remedy}"
        )
    return {name: data_dir / f"{name}.jsonl" for name in names}


def write_task_files(
    folder: Path, data_dir: Path, names: Sequence[str], *, stock: Mapping[str, Path], cache_dir: Path | None = None
) -> TaskFiles:
    """Write the task files of `names` into an empty folder.

    Args:
        folder: Where they go; task files name data by absolute path, so the folder stays where it is made.
        data_dir: Folder with NAME.jsonl, and NAME_SPLIT.jsonl for the examples of few-shot prompts.
        names: Tasks to write.
        stock: Stock file of each name but `mmlu`.
        cache_dir: Where datasets keeps its copies; None: its usual place.

    Raises:
        DataError: Data is missing or has a row that does not fit.
    """
    data = find_data(data_dir.resolve(), names)
    files = TaskFiles(folder=folder.resolve())
    for name in names:
        rows = read_task_rows(data[name], name)
        pools = _pools(data_dir.resolve(), name)
        for pool in pools.values():
            read_task_rows(pool, name)
        if name == MMLU:
            _write_mmlu(files, data[name], rows, pools, cache_dir)
        else:
            text = _task_text(stock[name], name, data[name], pools, cache_dir)
            (files.folder / f"{name}.yaml").write_text(text, encoding="utf-8")
            files.lines[name] = (data[name], list(range(1, len(rows) + 1)))
    return files


def _pools(data_dir: Path, name: str) -> dict[str, Path]:
    paths = {split: data_dir / f"{name}_{split}.jsonl" for split in ("train", "validation", "dev", "test")}
    return {split: path for split, path in paths.items() if path.is_file()}


def _task_text(stock: Path, name: str, scored: Path, pools: Mapping[str, Path], cache_dir: Path | None) -> str:
    """Return a task file: the stock one with its data taken from local files, splits without a file left out."""
    from lm_eval.tasks._yaml_loader import load_yaml  # the one reader that knows `include:`

    config = load_yaml(stock, resolve_func=False)
    scored_split = config.get("test_split") or config.get("validation_split")
    if not scored_split:
        raise DataError(f"The stock task {name} names no split to score ({stock}), so no file can take its place.")
    local: dict[str, Any] = {"include": str(stock), "task": name, "tag": None}
    local |= {"dataset_path": "json", "dataset_name": None}
    data_files = {scored_split: str(scored)}
    for key in (*SPLITS, "fewshot_split"):
        split = config.get(key)
        if split in pools and split != scored_split:
            data_files[split] = str(pools[split])
        elif split is not None and split != scored_split:
            local[key] = None
    local["dataset_kwargs"] = {"data_files": data_files, **({"cache_dir": str(cache_dir)} if cache_dir else {})}
    return yaml.safe_dump(local, sort_keys=False, allow_unicode=True)


def _write_mmlu(
    files: TaskFiles, source: Path, rows: list[dict[str, Any]], pools: Mapping[str, Path], cache_dir: Path | None
) -> None:
    """Write one file of rows and one task a subject, and the groups of the subjects that are there."""
    root = tasks_root() / MMLU_FOLDER
    folder = files.folder / MMLU
    folder.mkdir()
    stock = {path.stem.removeprefix("mmlu_"): path for path in sorted(root.glob("mmlu_*.yaml"))}
    by_subject: dict[str, list[int]] = {}
    for line, row in enumerate(rows, start=1):
        if row["subject"] not in stock:
            near = nearest_name(row["subject"], stock)
            hint = f" Did you mean {near!r}?" if near else ""
            raise DataError(f"{source}:{line}: {row['subject']!r} is none of MMLU's {len(stock)} subjects.{hint}")
        by_subject.setdefault(row["subject"], []).append(line)
    examples = {split: read_task_rows(path, MMLU) for split, path in pools.items()}
    groups: dict[str, list[str]] = {}
    for subject, lines in sorted(by_subject.items()):
        scored = folder / f"{subject}.jsonl"
        _write_rows(scored, [rows[line - 1] for line in lines])
        own_pools = {}
        for split, pool in examples.items():
            chosen = [row for row in pool if row["subject"] == subject]
            if chosen:
                own_pools[split] = folder / f"{subject}_{split}.jsonl"
                _write_rows(own_pools[split], chosen)
        name = f"mmlu_{subject}"
        text = _task_text(stock[subject], name, scored, own_pools, cache_dir)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        files.lines[name] = (source, lines)
        tag = yaml.safe_load(stock[subject].read_text(encoding="utf-8"))["tag"]
        groups.setdefault(tag.removesuffix("_tasks"), []).append(name)
    for group, members in [*groups.items(), (MMLU, list(groups))]:
        local = {"include": str(root / f"_{group}.yaml"), "group": group, "task": members}
        (folder / f"_{group}.yaml").write_text(yaml.safe_dump(local, sort_keys=False), encoding="utf-8")


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
