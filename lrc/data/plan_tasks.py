"""The plan of `lrc prepare`: a task a file of each source, and a fingerprint of all that the shards follow from."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from lrc.data.benchmark_rows import list_benchmarks
from lrc.data.documents import InputFile
from lrc.data.file_hash import file_sha256
from lrc.data.prepare_task import PrepareTask
from lrc.data.row_text import needed_fields
from lrc.data.source_files import check_columns, is_remote, list_files
from lrc.data_config import ClusterConfig, PrepareConfig
from lrc.errors import DataError

LAYOUT = 2
"""Changes with what tasks make of the same input or leave behind: a run that an older version started is not gone on
with."""


def plan_files(settings: PrepareConfig) -> tuple[InputFile, ...]:
    """List the files of all sources in their order, a task each, and check what can be checked without reading them.

    Raises:
        DataError: A source matches nothing, a file is empty, damaged or given twice, or a parquet column is missing.
    """
    files = []
    for number, source in enumerate(settings.sources):
        found = list_files(source.path)
        for index, file in enumerate(found):
            if file.path.endswith(".parquet") and (index == 0 or not is_remote(file.path)):
                check_columns(file, needed_fields(source))
        files += [InputFile(source=number, **file._asdict()) for file in found]
    _refuse_copies(files)
    return tuple(files)


def fingerprint(task: PrepareTask, tokenizer_sha256: str, chat_template: str | None) -> str:
    """Hash all that the shards follow from; how the tasks are run and what only decides on failure are left out."""
    bare = replace(task.settings, executor="local", workers=None, cluster=ClusterConfig(), max_bad_share=0.0)
    settings = asdict(bare)
    benchmarks = list_benchmarks(task.settings.decontaminate)
    facts = [LAYOUT, settings, [asdict(file) for file in task.files], benchmarks, tokenizer_sha256, chat_template]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _refuse_copies(files: list[InputFile]) -> None:
    """Refuse a file that is given twice; local ones of one size are read for it, remote ones when their turn comes."""
    by_size: dict[int, list[str]] = {}
    seen: dict[str, str] = {}
    for file in files:
        if is_remote(file.path):
            refuse_seen(seen, file.path, file.path)
        else:
            by_size.setdefault(file.num_bytes, []).append(file.path)
    for paths in by_size.values():
        for path in paths if len(paths) > 1 else ():
            refuse_seen(seen, file_sha256(Path(path)), path)


def refuse_seen(seen: dict[str, str], key: str, path: str) -> None:
    """Note an input under what identifies it.

    Raises:
        DataError: Another input has the same key.
    """
    if key in seen:
        raise DataError(f"Each input must be given once, but {path} is the same as {seen[key]}. Remove one.")
    seen[key] = path
