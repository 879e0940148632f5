"""The last stage: budgets met to the document, copies and too many bad rows refused, twice the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrc.data.assemble import assemble
from lrc.data.prepare_task import PrepareTask
from lrc.data.shards import ShardBlocks
from lrc.data_config import PrepareConfig, SourceConfig
from lrc.errors import DataError
from tests.data.raw_sources import byte_tokenizer, make_task, run_task, texts, write_source
from tests.data.test_shards import documents_in


def task_of(root: Path, *sources: SourceConfig, **settings: Any) -> PrepareTask:
    tokenizer = byte_tokenizer(root / "tokenizer")
    prepare = PrepareConfig(sources=list(sources), **settings)
    return run_task(make_task(root / "out", prepare, tokenizer))


def finish(task: PrepareTask) -> dict[str, Any]:
    return assemble(task, Path(task.folder), tokenizer_sha256="0" * 64)


@pytest.mark.parametrize("budget", [1, 50, 333, 700, 10**6])
def test_the_document_that_reaches_the_budget_is_the_last_one(tmp_path: Path, budget: int) -> None:
    for number in range(2):
        write_source(tmp_path / f"{number}.jsonl", texts(20, 20 * number))
    manifest = finish(task_of(tmp_path, SourceConfig(path=str(tmp_path / "*.jsonl"), max_tokens=budget)))
    sizes = [len(row["text"]) + 2 for row in texts(40)]
    wanted = next((count for count in range(1, 41) if sum(sizes[:count]) >= budget), 40)
    (source,) = manifest["sources"]
    assert (source["kept"], source["tokens"]) == (wanted, sum(sizes[:wanted]))
    assert source["rows"] == source["kept"] + sum(source["rejected"].values()) + source["bad_rows"]
    blocks = ShardBlocks(tmp_path / "out", sequence_length=16, vocab_size=258, tokenizer_sha256=None)
    assert [len(ids) for ids in documents_in(blocks)] == sizes[:wanted]


def test_a_second_call_after_a_kill_writes_the_same(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", texts(30))
    task = task_of(tmp_path, SourceConfig(path=str(tmp_path / "a.jsonl"), max_tokens=200))
    first = finish(task)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert finish(task) == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


def test_each_source_has_its_own_class_and_counts(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", texts(5))
    write_source(tmp_path / "b.parquet", [{"messages": [{"role": "user", "content": "Hi"}]}])
    chat = SourceConfig(path=str(tmp_path / "b.parquet"), kind="chat", data_class="chat")
    manifest = finish(task_of(tmp_path, SourceConfig(path=str(tmp_path / "a.jsonl")), chat))
    assert [shard["data_class"] for shard in manifest["shards"]] == ["general", "chat"]
    assert [source["kept"] for source in manifest["sources"]] == [5, 1]
    assert manifest["sources"][1]["tokens"] == len("<user>Hi") + 2
    assert manifest["tokens"] == sum(source["tokens"] for source in manifest["sources"])


def test_too_many_bad_rows_fail_and_all_are_listed(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", [*texts(8), b"{\n", {"text": None}])
    task = task_of(tmp_path, SourceConfig(path=str(tmp_path / "a.jsonl")), max_bad_share=0.1)
    with pytest.raises(DataError, match=r"found 2 of 10, first .*a\.jsonl:9: no JSON"):
        finish(task)
    listed = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in listed] == [9, 10]
    assert listed[1] == {"file": str(tmp_path / "a.jsonl"), "line": 10, "reason": "field 'text' is null"}
    task.settings = PrepareConfig(sources=task.settings.sources, max_bad_share=0.2)
    assert finish(task)["sources"][0]["bad_rows"] == 2


def test_sources_of_which_nothing_is_kept_are_refused(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", texts(8))
    task = task_of(tmp_path, SourceConfig(path=str(tmp_path / "a.jsonl"), filters=("int_score > 9",)))
    with pytest.raises(DataError, match=r"No row of the sources was kept.*int_score > 9.*8"):
        finish(task)


def test_documents_that_are_put_aside_are_in_no_shard_and_chats_are_none_of_them(tmp_path: Path) -> None:
    for number in range(2):
        write_source(tmp_path / f"{number}.jsonl", texts(40, 30 * number))  # ten are in both
    write_source(tmp_path / "chat.json", [{"messages": [{"role": "user", "content": str(one)}]} for one in range(50)])
    chat = SourceConfig(path=str(tmp_path / "chat.json"), kind="chat")
    task = task_of(tmp_path, SourceConfig(path=str(tmp_path / "?.jsonl")), chat, held_out_share=0.3)
    manifest = finish(task)
    aside = (tmp_path / "out" / "held_out.jsonl").read_bytes()
    rows = [json.loads(line) for line in aside.splitlines()]
    found = [row["text"] for row in rows]
    source, chats = manifest["sources"]
    assert manifest["held_out"] == {"documents": len(rows)}
    assert 8 <= len(rows) == source["rejected"]["put aside as held out"] <= 40
    assert (source["rows"], chats["kept"]) == (80, 50)
    blocks = ShardBlocks(tmp_path / "out", sequence_length=16, vocab_size=258, tokenizer_sha256=None)
    assert sorted(len(ids) for ids in documents_in(blocks))[50:] == sorted(
        len(row["text"]) + 2 for number in range(2) for row in texts(40, 30 * number) if row["text"] not in found
    )
    assert finish(task) == manifest
    assert (tmp_path / "out" / "held_out.jsonl").read_bytes() == aside


def test_a_share_that_puts_nothing_aside_costs_no_shard(tmp_path: Path) -> None:
    write_source(tmp_path / "a.jsonl", texts(5))
    manifest = finish(task_of(tmp_path, SourceConfig(path=str(tmp_path / "a.jsonl")), held_out_share=1e-9))
    assert (manifest["held_out"], manifest["sources"][0]["kept"]) == ({"documents": 0}, 5)
    assert (tmp_path / "out" / "held_out.jsonl").read_bytes() == b""


def test_bad_rows_that_are_not_listed_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrc.data.documents.LISTED", 2)
    write_source(tmp_path / "a.jsonl", [*texts(7), *[{"text": None}] * 5])
    task = task_of(tmp_path, SourceConfig(path=str(tmp_path / "a.jsonl")), max_bad_share=0.4)
    with pytest.raises(DataError, match="found 5 of 12"):
        finish(task)
    task.settings = PrepareConfig(sources=task.settings.sources, max_bad_share=0.5)
    assert finish(task)["sources"][0]["bad_rows"] == 5
    listed = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in listed] == [8, 9]
