"""Token shards: what was written comes back, whole and with its borders, and damage is named."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lrc.data.blocks import open_blocks
from lrc.data.shards import FORMAT, ShardBlocks, ShardWriter, token_dtype
from lrc.data.tokenizer_hash import tokenizer_sha256
from lrc.errors import DataError
from tests.tiny import teacher_folder


def write_shards(folder: Path, *shards: list[list[int]], vocab_size: int = 100, **manifest: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    dtype, entries = token_dtype(vocab_size), []
    for number, documents in enumerate(shards):
        with ShardWriter(folder / f"{number:05d}", dtype) as writer:
            for ids in documents:
                writer.add(np.asarray(ids, dtype=np.uint32), np.asarray([len(ids)]))
        counts = {"tokens": writer.num_tokens, "documents": writer.num_documents}
        entries.append({"name": f"{number:05d}", **counts, "data_class": f"class {number}"})
    largest = max((token for shard in shards for ids in shard for token in ids), default=0)
    facts = {"format": FORMAT, "token_dtype": dtype.str, "largest_id": largest, "tokenizer_sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps({**facts, "shards": entries, **manifest}))
    return folder


def open_shards(folder: Path, sequence_length: int = 4, vocab_size: int = 100) -> ShardBlocks:
    return ShardBlocks(folder, sequence_length=sequence_length, vocab_size=vocab_size, tokenizer_sha256=None)


def documents_in(blocks: ShardBlocks) -> list[list[int]]:
    """Put the documents together again from blocks and their borders."""
    documents: list[list[int]] = []
    for index in range(len(blocks)):
        block = blocks.read(index)
        assert block.document_starts is not None
        starts = set(block.document_starts.tolist())
        for offset, token in enumerate(block.ids.tolist()):
            if offset in starts:
                documents.append([])
            documents[-1].append(token)
    return documents


documents = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=8)


@given(shards=st.lists(documents, min_size=1, max_size=3), sequence_length=st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_blocks_give_back_every_document_of_every_shard(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[list[int]]], sequence_length: int
) -> None:
    blocks = open_shards(write_shards(tmp_path_factory.mktemp("shards"), *shards), sequence_length)
    assert documents_in(blocks) == [ids for shard in shards for ids in shard]
    sizes = [len(blocks.read(index).ids) for index in range(len(blocks))]
    assert all(0 < size <= sequence_length for size in sizes)
    assert sum(size < sequence_length for size in sizes) <= len(shards)


def test_a_block_knows_its_class_and_where_documents_start(tmp_path: Path) -> None:
    blocks = open_shards(write_shards(tmp_path, [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]], [[11]]))
    found = [(block.ids.tolist(), block.data_class, starts(block)) for block in map(blocks.read, range(4))]
    assert found == [
        ([1, 2, 3, 4], "class 0", [0, 3]),
        ([5, 6, 7, 8], "class 0", []),
        ([9, 10], "class 0", [1]),
        ([11], "class 1", [0]),
    ]
    assert blocks.read(0).ids.dtype == np.int64


def test_a_block_names_its_shard_documents_and_tokens(tmp_path: Path) -> None:
    blocks = open_shards(write_shards(tmp_path, [[1, 2, 3, 4, 5], [6], [7, 8, 9]], [[10, 11]]))
    first, second = tmp_path / "00000.bin", tmp_path / "00001.bin"
    assert [blocks.where(index) for index in range(len(blocks))] == [
        f"{first}: documents 0 to 0, tokens 0 to 3",
        f"{first}: documents 0 to 2, tokens 4 to 7",
        f"{first}: documents 2 to 2, tokens 8 to 8",
        f"{second}: documents 0 to 0, tokens 0 to 1",
    ]


def starts(block: Any) -> list[int]:
    found: list[int] = block.document_starts.tolist()
    return found


@pytest.mark.parametrize(("vocab_size", "num_bytes"), [(65_536, 2), (65_537, 4)])
def test_ids_take_two_bytes_as_long_as_they_fit(tmp_path: Path, vocab_size: int, num_bytes: int) -> None:
    largest = vocab_size - 1
    folder = write_shards(tmp_path, [[0, largest]], vocab_size=vocab_size)
    assert (folder / "00000.bin").stat().st_size == 2 * num_bytes
    assert open_shards(folder, vocab_size=vocab_size).read(0).ids.tolist() == [0, largest]


@pytest.mark.parametrize(("vocab_size", "largest"), [(100, 65_535), (65_537, 70_000)])
def test_an_id_that_fits_is_written_as_it_is(tmp_path: Path, vocab_size: int, largest: int) -> None:
    folder = write_shards(tmp_path, [[1, largest]], vocab_size=vocab_size)
    assert open_shards(folder, vocab_size=largest + 1).read(0).ids.tolist() == [1, largest]


def test_an_id_that_does_not_fit_is_refused_and_not_wrapped(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "00000", token_dtype(100)) as writer:
        with pytest.raises(DataError, match=r"00000\.bin: ids must fit into 2 bytes.*token id 65536"):
            writer.add(np.asarray([1, 65_536], dtype=np.uint32), np.asarray([2]))
        writer.add(np.asarray([3], dtype=np.uint32), np.asarray([1]))
    assert (writer.num_tokens, writer.num_documents) == (1, 1)
    assert (tmp_path / "00000.bin").read_bytes() == b"\x03\x00"


def test_open_blocks_takes_a_shard_folder_of_the_teachers_tokenizer(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder(tmp_path / "teacher"))
    own = write_shards(tmp_path / "own", [[1, 2, 3]], tokenizer_sha256=tokenizer_sha256(tokenizer))
    blocks = open_blocks(str(own), tokenizer, sequence_length=4, vocab_size=100)
    assert isinstance(blocks, ShardBlocks)
    assert blocks.read(0).ids.tolist() == [1, 2, 3]
    foreign = write_shards(tmp_path / "foreign", [[1, 2, 3]])
    with pytest.raises(DataError, match="made with another tokenizer"):
        open_blocks(str(foreign), tokenizer, sequence_length=4, vocab_size=100)


@pytest.mark.parametrize("name", ["00000.bin", "00000.starts"])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_missing_or_short_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = write_shards(tmp_path, [[1, 2, 3], [4]]) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{name} must have .* bytes"):
        open_shards(tmp_path)


def test_ids_outside_the_teachers_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"token id 50 is outside the teacher's vocabulary \(0 to 49\)"):
        open_shards(write_shards(tmp_path, [[1, 50]]), vocab_size=50)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json must be the manifest of token shards"):
        open_shards(tmp_path)


def test_another_format_and_an_empty_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must have the format lrc-shards/1, found 'lrc-shards/9'"):
        open_shards(write_shards(tmp_path / "a", [[1]], format="lrc-shards/9"))
    with pytest.raises(DataError, match="holds no tokens"):
        open_shards(write_shards(tmp_path / "b"))


def test_ten_gigabytes_open_in_under_a_second(tmp_path: Path) -> None:
    tokens = 5 * 10**9
    folder = write_shards(tmp_path, [[1]])
    os.truncate(folder / "00000.bin", 2 * tokens)  # a sparse file: no disk is taken
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["tokens"] = tokens
    (folder / "manifest.json").write_text(json.dumps(manifest))
    began = time.monotonic()
    blocks = open_shards(folder, 2048)
    last = blocks.read(len(blocks) - 1)
    assert time.monotonic() - began < 1
    assert len(blocks) == -(-tokens // 2048)
    assert len(last.ids) == tokens % 2048


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists /proc")
def test_of_many_shards_few_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrc.data.shards.MAPPED_SHARDS", 3)
    folder = write_shards(tmp_path, *([[number] * 4] for number in range(20)))
    blocks = open_shards(folder)
    open_files = []
    for index in [*range(20), *range(20), 0]:
        assert blocks.read(index).ids.tolist() == [index] * 4
        maps = Path("/proc/self/maps").read_text()
        open_files.append(len({line.split()[-1] for line in maps.splitlines() if str(folder) in line}))
    assert max(open_files) == 6
