"""Duplicates, near duplicates and contaminated documents are left out, one of each kind stays, and each is counted."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrc.data.assemble import assemble
from lrc.data.dedupe import CONTAMINATED, EXACT, NEAR, SpacedWords, write_benchmark_index
from lrc.data.executors import run_here
from lrc.data.prepare_task import PrepareTask
from lrc.data.shards import ShardBlocks
from lrc.data.stages import all_stages
from lrc.data_config import PrepareConfig, SourceConfig
from tests.data.raw_sources import byte_tokenizer, make_task, write_source
from tests.data.test_shards import documents_in


def sentence(start: int, length: int = 60) -> str:
    """Words that no other start shares; in letters, for datatrove takes all numbers for one."""
    numbers = range(start * 1000, start * 1000 + length)
    return " ".join("".join("abcdefghij"[int(digit)] for digit in str(number)) for number in numbers)


def prepared(root: Path, sources: Iterable[list[str]], **settings: Any) -> PrepareTask:
    """Run all stages on sources of one file each, in this process."""
    configs = []
    for number, documents in enumerate(sources):
        path = write_source(root / f"{number}.jsonl", [{"text": text} for text in documents])
        configs.append(SourceConfig(path=str(path)))
    task = make_task(root / "out", PrepareConfig(sources=configs, **settings), byte_tokenizer(root / "tokenizer"))
    if task.settings.decontaminate:
        write_benchmark_index(task.settings, root / "out")
    for stage in all_stages(task):
        run_here(stage, root / "out", workers=1)
    return task


def kept_in(task: PrepareTask) -> tuple[list[str], list[dict[str, int]]]:
    """Return the documents of the shards, and the counts of the rejected of each source."""
    folder = Path(task.folder)
    manifest = assemble(task, folder, tokenizer_sha256="0" * 64)
    blocks = ShardBlocks(folder, sequence_length=64, vocab_size=258, tokenizer_sha256=None)
    for source in manifest["sources"]:
        assert source["rows"] == source["kept"] + sum(source["rejected"].values()) + source["bad_rows"]
    tokenizer = json.loads((folder / "encoder_backend.json").read_text())["model"]["vocab"]
    letters = {number: letter for letter, number in tokenizer.items()}
    texts = ["".join(letters[token] for token in ids[1:-1]).replace("Ġ", " ") for ids in documents_in(blocks)]
    return texts, [source["rejected"] for source in manifest["sources"]]


def test_of_documents_with_the_same_text_that_of_the_earliest_source_stays(tmp_path: Path) -> None:
    first = [sentence(1), sentence(2), sentence(1), sentence(3)]
    second = [sentence(3), sentence(4), sentence(2)]
    texts, rejected = kept_in(prepared(tmp_path, [first, second], exact_dedupe=True))
    assert texts == [sentence(1), sentence(2), sentence(3), sentence(4)]
    assert rejected == [{EXACT: 1}, {EXACT: 2}]


def test_of_documents_with_nearly_the_same_words_one_stays(tmp_path: Path) -> None:
    near = sentence(1, 200) + " and one more"
    texts, rejected = kept_in(
        prepared(tmp_path, [[sentence(1, 200), sentence(2)], [near, sentence(5)]], minhash_dedupe=True)
    )
    assert len(texts) == 3
    assert {sentence(2), sentence(5)} < set(texts)
    assert sum(counts.get(NEAR, 0) for counts in rejected) == 1


def test_both_kinds_together_count_each_document_once(tmp_path: Path) -> None:
    near = sentence(1, 200) + " and one more"
    first = [sentence(1, 200), sentence(2), sentence(2)]
    texts, rejected = kept_in(prepared(tmp_path, [first, [near, sentence(2)]], exact_dedupe=True, minhash_dedupe=True))
    assert len(texts) == 2
    assert sum(counts.get(EXACT, 0) for counts in rejected) == 2
    assert sum(counts.get(NEAR, 0) for counts in rejected) == 1


def test_nothing_is_lost_where_nothing_is_doubled(tmp_path: Path) -> None:
    documents = [sentence(number) for number in range(6)] + ["short", "one two three four"]
    texts, rejected = kept_in(prepared(tmp_path, [documents], exact_dedupe=True, minhash_dedupe=True))
    assert texts == documents
    assert rejected == [{}]


@pytest.mark.parametrize(("shared", "kept"), [(12, False), (11, True)])
def test_a_document_with_a_benchmarks_run_of_words_is_left_out(tmp_path: Path, shared: int, kept: bool) -> None:
    words = sentence(7, 30).split()
    row = {"question": " ".join(words[:20]).upper() + "?", "choices": {"text": ["yes", "no"]}, "gold": 1}
    benchmark = write_source(tmp_path / "benchmark.jsonl", [row])
    document = f"Before, {' '.join(words[3 : 3 + shared])}! after"
    task = prepared(tmp_path, [[sentence(1), document]], decontaminate=(str(benchmark),))
    texts, rejected = kept_in(task)
    assert texts == [sentence(1), document][: 2 if kept else 1]
    assert rejected == [{} if kept else {CONTAMINATED: 1}]
    benchmarks = json.loads((tmp_path / "out" / "manifest.json").read_text())["benchmarks"]
    assert benchmarks["files"] == [str(benchmark)]
    assert len(benchmarks["ngrams_sha256"]) == 64


def test_the_benchmark_index_is_the_same_every_time(tmp_path: Path) -> None:
    benchmark = write_source(tmp_path / "benchmark.jsonl", [{"a": sentence(1)}, {"b": [sentence(2)]}])
    settings = PrepareConfig(decontaminate=(str(benchmark),), decontaminate_words=5)
    for name in ("one", "two"):
        write_benchmark_index(settings, tmp_path / name)
    one, two = ((tmp_path / name / "dedupe/benchmarks/benchmarks.index.hashes") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert len(np.fromfile(one, dtype="<u8")) == 2 * (60 - 5 + 1)


def test_words_stand_between_spaces() -> None:
    assert SpacedWords().word_tokenize(" one  two\nthree ") == ["one", "two", "three"]


@pytest.mark.parametrize("kind", ["exact_dedupe", "minhash_dedupe"])
def test_the_copy_in_front_of_the_budgets_end_stays(tmp_path: Path, kind: str) -> None:
    doubled = sentence(99, 200)
    first = [*(sentence(number) for number in range(1, 11)), doubled]  # at row 10, its copy at row 3 of a later file
    later = [*(sentence(number) for number in range(20, 23)), doubled, sentence(30)]
    for number, documents in enumerate([first, later]):
        write_source(tmp_path / f"{number}.jsonl", [{"text": text} for text in documents])
    budget = sum(len(text) + 2 for text in first)
    source = SourceConfig(path=str(tmp_path / "*.jsonl"), max_tokens=budget)
    settings = PrepareConfig(sources=[source], **{kind: True})
    task = make_task(tmp_path / "out", settings, byte_tokenizer(tmp_path / "tokenizer"))
    for stage in all_stages(task):
        run_here(stage, tmp_path / "out", workers=1)
    texts, rejected = kept_in(task)
    assert texts == first
    assert rejected == [{}]
