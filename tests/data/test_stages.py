"""Which stages run, in which order, with how many tasks."""

import resource
from pathlib import Path

import pytest

from lrc.data.stages import Quiet, all_stages
from lrc.data_config import PrepareConfig, SourceConfig
from tests.data.raw_sources import byte_tokenizer, make_task, texts, write_source

EXACT = [("exact-sign", 2), ("exact-find", 1)]
MINHASH = [("minhash-sign", 2), ("minhash-buckets", 14), ("minhash-cluster", 1)]


@pytest.mark.parametrize(
    ("exact", "minhash", "before"),
    [(False, False, []), (True, False, EXACT), (False, True, MINHASH), (True, True, EXACT + MINHASH)],
)
def test_stages_come_in_order_and_tokenising_is_the_last(
    tmp_path: Path, exact: bool, minhash: bool, before: list[tuple[str, int]]
) -> None:
    for number in range(2):
        write_source(tmp_path / f"{number}.jsonl", texts(3, number))
    settings = PrepareConfig(
        sources=[SourceConfig(path=str(tmp_path / "*.jsonl"))], exact_dedupe=exact, minhash_dedupe=minhash
    )
    task = make_task(tmp_path / "out", settings, byte_tokenizer(tmp_path / "tokenizer"))
    stages = all_stages(task)
    assert [(stage.name, stage.tasks) for stage in stages] == [*before, ("tokenise", 2)]
    assert all(isinstance(stage.pipeline[0], Quiet) for stage in stages)
    assert stages[-1].pipeline[1] is task


def test_a_worker_may_open_as_many_files_as_the_system_grants() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        Quiet()(None, 0, 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
