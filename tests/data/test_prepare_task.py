"""One task: a file becomes a shard whose blocks give back the documents, and every row is tallied."""

import copy
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lrc.data import documents, prepare_task, source_rows
from lrc.data.assemble import assemble
from lrc.data.prepare_task import PrepareTask, draft_path, remove_drafts
from lrc.data.shards import ShardBlocks
from lrc.data.task_results import result_path
from lrc.data_config import PrepareConfig, SourceConfig
from lrc.errors import DataError
from tests.data.raw_sources import byte_tokenizer, make_task, run_task, texts, write_source
from tests.data.test_shards import documents_in

VOCABULARY = 258


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def run_all(root: Path, tokenizer: Path, *, max_document_bytes: int = 10_000, **source: Any) -> PrepareTask:
    """Run every task of one source, `root/*.jsonl`, in order."""
    config = SourceConfig(path=str(root / "*.jsonl"), **source)
    prepare = PrepareConfig(sources=[config], max_document_bytes=max_document_bytes)
    return run_task(make_task(root / "out", prepare, tokenizer))


def result_of(task: PrepareTask, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result_path(Path(task.folder), rank).read_text())
    return found


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(files=st.lists(st.lists(words, min_size=1, max_size=6), min_size=1, max_size=3), length=st.integers(1, 40))
@settings(deadline=None, max_examples=25)
def test_the_decoded_blocks_give_back_the_source_documents_exactly(
    tokenizer: Path, files: list[list[str]], length: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number, documents in enumerate(files):  # the first row makes each file another one
            rows = [{"text": f"file {number}"}, *({"text": text} for text in documents)]
            write_source(root / f"{number}.jsonl", rows)
        task = run_all(root, tokenizer)
        assemble(task, root / "out", tokenizer_sha256="0" * 64)
        blocks = ShardBlocks(root / "out", sequence_length=length, vocab_size=VOCABULARY, tokenizer_sha256=None)
        found = documents_in(blocks)
        decoder = AutoTokenizer.from_pretrained(tokenizer)
        bos, eos = decoder.bos_token_id, decoder.eos_token_id
        expected = [text for number, documents in enumerate(files) for text in (f"file {number}", *documents)]
        assert [ids[0] for ids in found] == [bos] * len(expected)
        assert [ids[-1] for ids in found] == [eos] * len(expected)
        assert [decoder.decode(ids[1:-1]) for ids in found] == expected


def test_every_row_is_kept_rejected_or_bad(tmp_path: Path, tokenizer: Path) -> None:
    rows = [*texts(10), {"text": "no score"}, {"text": "", "int_score": 4}, b"{\n", {"int_score": 4}]
    write_source(tmp_path / "a.jsonl", [*rows, {"text": None, "int_score": 4}])
    result = result_of(run_all(tmp_path, tokenizer, filters=("int_score >= 3",)))
    assert result["rows"] == 15
    assert result["documents"] == 4
    assert result["rejected"] == {"empty text": 1, "int_score >= 3": 6}
    assert [line for line, _ in result["bad"]] == [11, 13, 14, 15]
    assert result["bad"][0] == [11, "no field 'int_score'"]
    assert result["bad"][3] == [15, "field 'text' is null"]


def test_a_document_of_50_megabytes_is_listed_and_not_tokenised(tmp_path: Path, tokenizer: Path) -> None:
    write_source(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "z" * 50_000_000}, {"text": "b"}])
    result = result_of(run_all(tmp_path, tokenizer, max_document_bytes=PrepareConfig.max_document_bytes))
    assert result["documents"] == 2
    assert result["bad"] == [[2, "longer than prepare.max_document_bytes = 5000000"]]


def test_the_share_kept_is_near_and_chosen_by_row(tmp_path: Path, tokenizer: Path) -> None:
    write_source(tmp_path / "a.jsonl", texts(1000))
    first = result_of(run_all(tmp_path, tokenizer, keep=0.3))
    shard = (tmp_path / "out" / "00000.bin").read_bytes()
    assert 240 < first["documents"] < 360  # 300 expected, standard deviation 14
    assert first["documents"] + first["rejected"]["not among the share kept"] == 1000
    run_all(tmp_path, tokenizer, keep=0.3)
    assert (tmp_path / "out" / "00000.bin").read_bytes() == shard


@pytest.mark.parametrize(("budget", "files_read"), [(30, 1), (400, 2), (10**6, 5)])
def test_files_behind_the_budget_are_not_read(tmp_path: Path, tokenizer: Path, budget: int, files_read: int) -> None:
    for number in range(5):
        write_source(tmp_path / f"{number}.jsonl", texts(20, 20 * number))  # 350 tokens
    task = run_all(tmp_path, tokenizer, max_tokens=budget)
    done = [result_path(Path(task.folder), rank).exists() for rank in range(5)]
    assert done == [rank < files_read for rank in range(5)]


def test_a_copy_of_the_task_finds_its_files_and_does_not_carry_them(tmp_path: Path, tokenizer: Path) -> None:
    for number in range(3):
        write_source(tmp_path / f"{number}.jsonl", texts(2, number))
    task = make_task(tmp_path / "out", PrepareConfig(sources=[SourceConfig(path=str(tmp_path))]), tokenizer)
    packed = pickle.dumps(task)
    assert b"0.jsonl" not in packed
    assert pickle.loads(packed) == task
    assert copy.deepcopy(task) == task


def test_a_task_leaves_nothing_under_its_name_when_its_file_is_damaged(tmp_path: Path, tokenizer: Path) -> None:
    path = write_source(tmp_path / "b.jsonl.gz", [{"text": "y" * 5000}] * 400)
    path.write_bytes(path.read_bytes()[:-100])
    prepare = PrepareConfig(sources=[SourceConfig(path=str(path))])
    task = make_task(tmp_path, prepare, tokenizer)
    with pytest.raises(DataError, match=r"b\.jsonl\.gz is damaged after row"):
        task(None, 0, 1)
    assert not result_path(tmp_path, 0).exists()
    assert not (tmp_path / "00000.bin").exists()


def test_a_task_that_outlived_its_run_does_not_write_into_the_next_ones_file(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "a.jsonl", texts(40))
    expected = {path.name: path.read_bytes() for path in outcome(run_all(tmp_path, tokenizer))}
    task = make_task(tmp_path / "two", PrepareConfig(sources=[SourceConfig(path=str(tmp_path / "a.jsonl"))]), tokenizer)
    met = []

    def interrupted(batches: Any) -> Any:
        for batch in batches:
            if not met:
                met.append(sorted(path.name for path in (tmp_path / "two").glob("*-partial.*")))
                task(None, 0, 1)  # the next run does the task while this one is in the middle of it
                assert {path.name: path.read_bytes() for path in outcome(task)} == expected
            yield batch

    batches = prepare_task._batches
    monkeypatch.setattr(prepare_task, "_batches", lambda texts: interrupted(batches(texts)))
    task(None, 0, 1)
    assert len(met[0]) == 2
    assert {path.name: path.read_bytes() for path in outcome(task)} == expected
    assert not list((tmp_path / "two").glob("*-partial*"))


def outcome(task: PrepareTask) -> list[Path]:
    return sorted(Path(task.folder).glob("00000.*"))


def test_what_killed_tasks_left_is_deleted(tmp_path: Path) -> None:
    kept = [tmp_path / "00000.bin", tmp_path / "files.json"]
    left = [draft_path(tmp_path, 3).with_suffix(suffix) for suffix in (".bin", ".starts", ".held-out", ".json")]
    left.append(draft_path(tmp_path, 4).with_name(f"{draft_path(tmp_path, 4).name}-fetched.jsonl"))
    for path in kept + left:
        path.touch()
    remove_drafts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_file_full_of_bad_rows_is_not_read_to_its_end(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "LISTED", 10)
    monkeypatch.setattr(source_rows, "CHUNK_BYTES", 100)
    path = write_source(tmp_path / "a.jsonl", [{"body": "x" * 50}] * 1000)
    task = make_task(tmp_path / "out", PrepareConfig(sources=[SourceConfig(path=str(path))]), tokenizer)
    with pytest.raises(DataError, match=r"found (1|2|4|8|16)0 of the \d\d\d? read so far.*a\.jsonl:1: no field 'text'"):
        task(None, 0, 1)
    assert not result_path(tmp_path / "out", 0).exists()


def test_tasks_read_files_by_absolute_paths_and_the_plan_keeps_the_recipes(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "a.jsonl", texts(2))
    monkeypatch.chdir(tmp_path)
    task = make_task(tmp_path / "out", PrepareConfig(sources=[SourceConfig(path="a.jsonl")]), tokenizer)
    assert [file.path for file in copy.deepcopy(task).files] == [str(tmp_path / "a.jsonl")]
    assert [file.path for file in task.files] == ["a.jsonl"]
