"""Plans the tasks of `lrc prepare` and lets datatrove's executor run those that are not done yet."""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lrc.data.documents import InputFile
from lrc.data.file_hash import file_sha256
from lrc.data.prepare_task import PrepareTask
from lrc.data.source_files import check_columns, is_remote, list_files
from lrc.data_config import FILTER, PrepareConfig
from lrc.errors import DataError

LOGS = "logs"


def plan_files(settings: PrepareConfig) -> tuple[InputFile, ...]:
    """List the files of all sources in their order, a task each, and check what can be checked without reading them.

    Raises:
        DataError: A source matches nothing, a file is empty, damaged or given twice, or a parquet column is missing.
    """
    files = []
    for number, source in enumerate(settings.sources):
        columns = {match[1].split(".")[0] for match in map(FILTER.fullmatch, source.filters) if match}
        columns |= {source.text_key} if source.kind == "text" else set()
        found = list_files(source.path)
        for index, file in enumerate(found):
            if file.path.endswith(".parquet") and (index == 0 or not is_remote(file.path)):
                check_columns(file, columns)
        files += [InputFile(source=number, **file._asdict()) for file in found]
    _refuse_copies(files)
    return tuple(files)


def fingerprint(task: PrepareTask, tokenizer_sha256: str, chat_template: str | None) -> str:
    """Hash all that the shards follow from; what only decides whether a run fails is left out, and so are workers."""
    settings = asdict(replace(task.settings, workers=None, max_bad_share=0.0))
    facts = [settings, [asdict(file) for file in task.files], tokenizer_sha256, chat_template]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def run_tasks(task: PrepareTask, *, workers: int) -> None:
    """Run the unfinished tasks on this machine.

    Args:
        task: The step to run, for each of its files.
        workers: Processes.

    Raises:
        DataError: A task failed.
    """
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    logger.disable("datatrove")  # the verb shows progress, the manifest says what happened
    logging.getLogger("datatrove").setLevel(logging.ERROR)
    num_tasks = len(task.files)
    executor = LocalPipelineExecutor(
        pipeline=[Quiet(), task],
        tasks=num_tasks,
        workers=min(workers, num_tasks),
        logging_dir=os.fspath(Path(task.folder) / LOGS),
    )
    executor.run()


@dataclass
class Quiet:
    """First step of each pipeline: keeps datatrove's log off the terminal of the worker that it arrives in."""

    package: str = "datatrove"

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Hand on nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        from loguru import logger

        self.__dict__.update(state)
        logger.disable(self.package)


def _refuse_copies(files: list[InputFile]) -> None:
    """Refuse a file that is given twice; local ones of one size are read for it, remote ones when their turn comes."""
    by_size: dict[int, list[str]] = {}
    seen: dict[str, str] = {}
    for file in files:
        if is_remote(file.path):
            _refuse_seen(seen, file.path, file.path)
        else:
            by_size.setdefault(file.num_bytes, []).append(file.path)
    for paths in by_size.values():
        for path in paths if len(paths) > 1 else ():
            _refuse_seen(seen, file_sha256(Path(path)), path)


def _refuse_seen(seen: dict[str, str], key: str, path: str) -> None:
    if key in seen:
        raise DataError(f"Each input must be given once, but {path} is the same as {seen[key]}. Remove one.")
    seen[key] = path
