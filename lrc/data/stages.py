"""The stages of `lrc prepare` in order, each a datatrove pipeline and its number of tasks."""

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lrc.data.prepare_task import PrepareTask

TOKENISE = "tokenise"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of datatrove's executor."""

    name: str
    """Names its folder of logs and finished tasks."""
    pipeline: list[Any]
    tasks: int


@dataclass
class Quiet:
    """First step of each pipeline: readies the worker that it arrives in.

    It keeps datatrove's log off the terminal, and lets the process open as many files as the system grants: comparing
    signatures opens those of all input files at once.
    """

    package: str = "datatrove"

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Hand on nothing."""
        raise_file_limit()

    def __setstate__(self, state: dict[str, Any]) -> None:
        from loguru import logger

        self.__dict__.update(state)
        logger.disable(self.package)


def raise_file_limit() -> None:
    """Raise the number of files that this process may open to what the system grants it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS refuses more than its kernel's limit, whatever the hard one says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def all_stages(task: PrepareTask) -> list[Stage]:
    """List what has to run: whatever deduplication needs, then tokenising."""
    stages = []
    if task.settings.exact_dedupe or task.settings.minhash_dedupe:
        from lrc.data.dedupe import dedupe_pipelines

        stages = [
            Stage(name=name, pipeline=[Quiet(), *pipeline], tasks=tasks)
            for name, pipeline, tasks in dedupe_pipelines(task)
        ]
    return [*stages, Stage(name=TOKENISE, pipeline=[Quiet(), task], tasks=len(task.files))]
