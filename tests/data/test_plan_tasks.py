"""The plan: one task a file, copies refused, and a fingerprint of all that the shards follow from."""

from dataclasses import replace
from pathlib import Path

import pytest

from lrc.data.plan_tasks import fingerprint, plan_files
from lrc.data.prepare_task import PrepareTask
from lrc.data_config import ClusterConfig, PrepareConfig, SourceConfig
from lrc.errors import DataError
from tests.data.raw_sources import texts, write_source


def test_a_file_given_twice_or_copied_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", texts(3))
    write_source(tmp_path / "b.jsonl", texts(3))
    with pytest.raises(DataError, match=r"b\.jsonl is the same as .*a\.jsonl"):
        plan_files(PrepareConfig(sources=[SourceConfig(path=str(tmp_path))]))
    one = SourceConfig(path=str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="is the same as"):
        plan_files(PrepareConfig(sources=[one, one]))


def test_files_of_one_size_may_differ(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", [{"text": "a"}])
    write_source(tmp_path / "b.jsonl", [{"text": "b"}])
    files = plan_files(PrepareConfig(sources=[SourceConfig(path=str(tmp_path))]))
    assert [Path(file.path).name for file in files] == ["a.jsonl", "b.jsonl"]


def test_filters_count_as_columns_of_a_parquet_file(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.parquet", [{"text": "a"}])
    source = SourceConfig(path=str(path), filters=("int_score >= 4",))
    with pytest.raises(DataError, match=r"must have the columns \['int_score', 'text'\]"):
        plan_files(PrepareConfig(sources=[source]))


def test_the_field_of_the_text_is_a_column_of_a_parquet_file(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.parquet", [{"text": "a"}])
    with pytest.raises(DataError, match=r"must have the columns \['body'\]"):
        plan_files(PrepareConfig(sources=[SourceConfig(path=str(path), text_key="body")]))


def test_the_fingerprint_follows_what_changes_the_bytes_only(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.jsonl", texts(3))
    prepare = PrepareConfig(sources=[SourceConfig(path=str(path))])
    task = PrepareTask(files=plan_files(prepare), settings=prepare, vocab_size=9, folder="f")

    def of(settings: PrepareConfig, sha256: str = "0", template: str | None = None) -> str:
        return fingerprint(replace(task, settings=settings, files=plan_files(settings)), sha256, template)

    cluster = ClusterConfig(partition="cpu")
    same = [replace(prepare, workers=7), replace(prepare, max_bad_share=0.5)]
    same.append(replace(prepare, executor="slurm", cluster=cluster))
    assert {of(settings) for settings in same} == {of(prepare)}
    others = [replace(prepare, seed=1), replace(prepare, sources=[SourceConfig(path=str(path), keep=0.5)])]
    changed = [*map(of, others), of(prepare, "1"), of(prepare, "0", "template")]
    write_source(path, texts(4))
    assert len({of(prepare), *changed}) == 5
