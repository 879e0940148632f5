"""Raw text as blocks: how it is packed, how much is tokenised, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from lrc.data import blocks as module
from lrc.data.blocks import open_blocks, ordered_batches
from lrc.data.packed_text import PackedText
from lrc.errors import DataError
from tests.data.letters import VOCABULARY, Letters, open_letters, write


def test_text_is_packed_as_bos_text_eos_into_full_blocks_and_the_rest_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "abc"}', '{"text": ""}', '{"text": "defg"}')
    blocks = open_letters(path, tokenizer=Letters())
    assert isinstance(blocks, PackedText)
    assert [blocks.read(index)[0].tolist() for index in range(len(blocks))] == [
        [90, 0, 1, 2],
        [91, 90, 91, 90],
        [3, 4, 5, 6],
    ]
    assert blocks.read(0).data_class == "general"
    starts = [blocks.read(index).document_starts for index in range(len(blocks))]
    assert [None if found is None else found.tolist() for found in starts] == [[0], [1, 3], []]


@pytest.mark.parametrize(("tokens", "num_blocks"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (99, 3)])
def test_of_text_no_more_is_tokenised_than_fills_the_blocks_of_what_is_asked_for(
    tmp_path: Path, tokens: int, num_blocks: int
) -> None:
    rows = ["ab", "cd", "ef"]  # 4 tokens each
    path = write(tmp_path / "a.jsonl", *(json.dumps({"text": text}) for text in rows))
    done: list[str] = []

    class Noting(Letters):
        def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
            done.append(text)
            return super().__call__(text, **options)

    blocks = open_blocks(path, Noting(), sequence_length=4, vocab_size=VOCABULARY, text_tokens=tokens)
    assert (len(blocks), done) == (num_blocks, rows[:num_blocks])
    whole = open_letters(path, tokenizer=Letters())
    asked, found = (ordered_batches(source, tokens=tokens, batch_size=1) for source in (whole, blocks))
    assert [batch.input_ids.tolist() for batch in found] == [batch.input_ids.tolist() for batch in asked]


def test_a_tokenizer_without_special_tokens_adds_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "ab"}', '{"text": "cd"}')
    assert open_letters(path, tokenizer=Letters(None, None)).read(0)[0].tolist() == [0, 1, 2, 3]


def test_too_little_text_for_a_block_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}')
    with pytest.raises(DataError, match="holds 3 tokens, fewer than one block of 4") as caught:
        open_letters(path, tokenizer=Letters())
    assert path in str(caught.value)


@pytest.mark.parametrize("row", ['{"text": 5}', '{"input_ids": [1]}', '{"text": null}'])
def test_a_row_without_text_among_text_is_refused_with_file_and_line(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "abcdef"}', row)
    with pytest.raises(DataError, match='"text" must be a string') as caught:
        open_letters(path, tokenizer=Letters())
    assert str(caught.value).startswith(f"{path}:2:")


def test_text_with_half_a_surrogate_pair_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "abcdef"}', '{"text": "ab\\ud83d"}')
    with pytest.raises(DataError, match="half a surrogate pair") as caught:
        open_letters(path, tokenizer=Letters())
    assert str(caught.value).startswith(f"{path}:2:")


def test_text_needs_a_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "abcdef"}')
    with pytest.raises(DataError, match="no tokenizer") as caught:
        open_letters(path)
    assert path in str(caught.value)


@pytest.mark.parametrize("vocab_size", [91, 92])
def test_text_with_an_id_outside_the_vocabulary_is_refused_with_file_and_line(tmp_path: Path, vocab_size: int) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "abcdef"}', '{"text": "gh"}')
    if vocab_size == 92:  # the end mark is 91
        assert len(open_blocks(path, Letters(), sequence_length=4, vocab_size=vocab_size)) == 3
        return
    with pytest.raises(
        DataError, match=r"token id 91 of this text, which is outside the model's vocabulary \(0 to 90\)"
    ):
        open_blocks(path, Letters(), sequence_length=4, vocab_size=vocab_size)
    rare = write(tmp_path / "b.jsonl", '{"text": "abcdef"}', '{"text": "gz"}')
    with pytest.raises(DataError, match="token id 25") as caught:
        open_blocks(rare, Letters(None, None), sequence_length=4, vocab_size=25)
    assert str(caught.value).startswith(f"{rare}:2:")


def test_progress_is_told_of_much_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", *['{"text": "abcdef"}'] * 3)
    told: list[tuple[int, int]] = []

    def note(done: int, rows: int) -> None:
        told.append((done, rows))

    for smallest, expected in ((1 << 26, []), (1, [(1, 3), (2, 3), (3, 3)])):
        monkeypatch.setattr(module, "INDEXED_BYTES", smallest)
        blocks = open_blocks(path, Letters(), sequence_length=4, vocab_size=VOCABULARY, progress=note)
        assert told == expected
    assert blocks.read(0).ids.dtype == np.int64
