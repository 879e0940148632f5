"""Blocks and batches: what rows become, in which order they come, and what is refused."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrc.data.block import Block
from lrc.data.blocks import (
    Batch,
    BatchPlan,
    TokenisedBlocks,
    collate,
    open_blocks,
    ordered_batches,
    step_batches,
)
from lrc.data.rows import JsonLines
from lrc.errors import DataError
from tests.data.letters import VOCABULARY, Letters, open_letters, write


class Numbered:
    """Blocks that hold their own number, `lengths[number]` times."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, index: int) -> Block:
        return Block(np.full(self.lengths[index], index, dtype=np.int64), f"class {index}")


def tokenised(path: str, sequence_length: int = 8) -> TokenisedBlocks:
    return TokenisedBlocks(JsonLines(path), sequence_length=sequence_length, vocab_size=VOCABULARY)


# ---- blocks


def test_a_tokenised_row_is_cut_to_the_sequence_length_and_keeps_its_class(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"input_ids": [1, 2, 99, 0, 5], "data_cls": "chat"}', '{"input_ids": [7]}')
    blocks = tokenised(path, sequence_length=3)
    ids, data_class, _ = blocks.read(0)
    assert (ids.tolist(), data_class) == ([1, 2, 99], "chat")
    assert ids.dtype == np.int64
    ids, data_class, _ = blocks.read(1)
    assert (ids.tolist(), data_class) == ([7], "general")
    assert len(blocks) == 2


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "abc"}',
        '{"input_ids": []}',
        '{"input_ids": null}',
        '{"input_ids": "12"}',
        '{"input_ids": {"0": 1}}',
        '{"input_ids": [1, true]}',
        '{"input_ids": [1, 2.0]}',
        '{"input_ids": [1, NaN]}',
        '{"input_ids": [1, "2"]}',
        '{"input_ids": [[1, 2]]}',
    ],
)
def test_input_ids_that_are_no_whole_numbers_are_refused_with_file_and_line(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"input_ids": [1]}', row)
    with pytest.raises(DataError, match="must be a list of at least one whole number") as caught:
        tokenised(path).read(1)
    assert str(caught.value).startswith(f"{path}:2:")


@pytest.mark.parametrize(
    "wrong",
    [
        VOCABULARY,
        -1,
        2**40,
        2**70,
    ],
)
@pytest.mark.parametrize("place", [0, 2, 9])
def test_an_id_outside_the_vocabulary_is_refused_with_file_and_line(tmp_path: Path, wrong: int, place: int) -> None:
    ids = [0, VOCABULARY - 1, *range(8)]
    ids[place] = wrong
    path = write(tmp_path / "a.jsonl", '{"input_ids": [1]}', '{"input_ids": [1]}', f'{{"input_ids": {ids}}}')
    blocks = tokenised(path)
    with pytest.raises(DataError, match=rf"token id {wrong} is outside the teacher's vocabulary \(0 to 99\)") as caught:
        blocks.read(2)
    assert str(caught.value).startswith(f"{path}:3:")


def test_blocks_name_the_lines_that_they_come_from(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "ab"}', '{"text": "cdef"}', '{"text": "ghi"}')
    packed = open_letters(path, sequence_length=4, tokenizer=Letters())  # <ab><cdef><ghi>
    assert [packed.where(index) for index in range(len(packed))] == [
        f"{path}:1",
        f"{path}:2",
        f"{path}:2 to {path}:3",
    ]
    rows = write(tmp_path / "b.jsonl", '{"input_ids": [1]}', '{"input_ids": [2, 3]}')
    assert [tokenised(rows).where(index) for index in (0, 1)] == [f"{rows}:1", f"{rows}:2"]


def test_a_row_with_neither_ids_nor_text_is_refused_and_shows_what_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"tokens": [1], "class": 2}')
    with pytest.raises(DataError, match='must have "input_ids" or "text"') as caught:
        open_letters(path)
    assert str(caught.value).startswith(f"{path}:1:")
    assert "['class', 'tokens']" in str(caught.value)


ROWS_OF_FIVE = 5 * len('{"input_ids": [1]}\n')


def file_of_five(path: Path, bad_line: int, bad: str = '{"input_ids": [7]}') -> str:
    """Five rows of one length; the bad one's id is outside a vocabulary of five, or what is given."""
    lines = ['{"input_ids": [1]}'] * 5
    lines[bad_line - 1] = bad
    return write(path, *lines)


@pytest.mark.parametrize("bad", ['{"input_ids": [7]}', '{"input_ids": [1}}', '{"input_idz": [1]}', '["input_ids", 01]'])
@pytest.mark.parametrize("bad_line", [2, 3, 5])
def test_opening_reads_every_row_of_a_small_file(tmp_path: Path, bad_line: int, bad: str) -> None:
    path = file_of_five(tmp_path / "a.jsonl", bad_line, bad)
    with pytest.raises(DataError) as caught:
        open_blocks(path, None, sequence_length=4, vocab_size=5)
    assert str(caught.value).startswith(f"{path}:{bad_line}:")


def test_opening_reads_every_row_of_several_small_files(tmp_path: Path) -> None:
    file_of_five(tmp_path / "a.jsonl", 1, '{"input_ids": [2]}')
    path = file_of_five(tmp_path / "b.jsonl", 3)
    with pytest.raises(DataError) as caught:
        open_blocks(str(tmp_path), None, sequence_length=4, vocab_size=5)
    assert str(caught.value).startswith(f"{path}:3:")


@pytest.mark.parametrize("bad_line", [1, 3, 5])
def test_opening_reads_the_first_and_the_last_row_of_a_large_file(
    tmp_path: Path, bad_line: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of_five(tmp_path / "a.jsonl", bad_line)
    monkeypatch.setattr("lrc.data.blocks.INDEXED_BYTES", ROWS_OF_FIVE)
    if bad_line == 3:
        assert len(open_blocks(path, None, sequence_length=4, vocab_size=5)) == 5
    else:
        with pytest.raises(DataError, match=f":{bad_line}: token id 7"):
            open_blocks(path, None, sequence_length=4, vocab_size=5)


def test_rows_with_ids_need_no_tokenizer(tmp_path: Path) -> None:
    blocks = open_letters(write(tmp_path / "a.jsonl", '{"input_ids": [1, 2, 3, 4, 5]}'))
    assert blocks.read(0)[0].tolist() == [1, 2, 3, 4]


# ---- batches


def test_collate_pads_on_the_right_and_shifts_labels() -> None:
    batch = collate([Block(np.array([5, 6, 7]), "a"), Block(np.array([8]), "b"), Block(np.array([3, 4]), "a")])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [3, 4, 0]]
    assert batch.labels.tolist() == [[6, 7, -100], [-100, -100, -100], [4, -100, -100]]
    assert batch.valid.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert batch.data_classes == ("a", "b", "a")
    assert (batch.input_ids.dtype, batch.labels.dtype, batch.valid.dtype) == (torch.int64, torch.int64, torch.bool)
    assert (batch.num_labels, batch.num_positions) == (3, 6)


def test_document_masking_restarts_positions_and_gives_a_documents_last_token_no_label() -> None:
    packed = Block(np.array([5, 6, 7, 8, 9]), "a", np.array([2, 3]))
    batch = collate([packed, Block(np.array([3, 4]), "b")], document_masking=True)
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 3, 4]]
    assert batch.labels.tolist() == [[6, -100, -100, 9, -100], [4, -100, -100, -100, -100]]
    assert batch.valid.tolist() == [[True] * 5, [True, True, False, False, False]]
    plain = collate([packed])
    assert plain.positions is None
    assert plain.labels.tolist() == [[6, 7, 8, 9, -100]]


def test_padding_after_packed_documents_opens_no_new_document() -> None:
    batch = collate([Block(np.array([5, 6, 7]), "a", np.array([2])), Block(np.arange(5), "b")], document_masking=True)
    assert batch.positions is not None
    assert batch.positions[0].tolist() == [0, 1, 0, 1, 2]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(deadline=None, max_examples=40)
def test_a_batch_counts_each_token_once_and_predicts_all_but_each_first(lengths: list[int]) -> None:
    batch = collate([Block(np.arange(1, length + 1), "general") for length in lengths])
    assert batch.num_positions == sum(lengths)
    assert batch.num_labels == sum(lengths) - len(lengths)
    for row, length in enumerate(lengths):
        assert batch.labels[row, : length - 1].tolist() == batch.input_ids[row, 1:length].tolist()
        assert batch.labels[row, length - 1 :].eq(-100).all()
        assert not batch.input_ids[row, length:].any()


def test_ordered_batches_take_blocks_from_the_front_until_they_hold_enough() -> None:
    batches = ordered_batches(Numbered(4, 4, 3, 4, 4), tokens=9, batch_size=2)
    assert [names(batch) for batch in batches] == [["class 0", "class 1"], ["class 2"]]
    assert sum(batch.num_positions for batch in batches) == 11
    exactly = ordered_batches(Numbered(4, 4, 3), tokens=8, batch_size=2)
    assert [names(batch) for batch in exactly] == [["class 0", "class 1"]]


def test_ordered_batches_end_with_the_data() -> None:
    batches = ordered_batches(Numbered(4, 4, 3), tokens=1000, batch_size=2)
    assert [names(batch) for batch in batches] == [["class 0", "class 1"], ["class 2"]]


def names(batch: Batch) -> list[str]:
    return list(batch.data_classes)


# ---- the plan


def one_batch_plan(seed: int, sequences: int) -> BatchPlan:
    return BatchPlan(seed=seed, batch_size=sequences, accumulation=1)


def blocks_of_step(plan: BatchPlan, step: int, num_blocks: int) -> list[int]:
    """All ranks' block numbers of a step, in the order of micro-batches, then ranks."""
    ranks = [list(replace(plan, rank=rank).indices(step, num_blocks)) for rank in range(plan.num_ranks)]
    assert all(len(micro_batches) == plan.accumulation for micro_batches in ranks)
    assert all(len(micro_batch) == plan.batch_size for micro_batches in ranks for micro_batch in micro_batches)
    return [block for micro in zip(*ranks, strict=True) for batch in micro for block in batch]


@given(
    seed=st.integers(0, 2**31),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    num_ranks=st.integers(1, 4),
    step=st.integers(0, 30),
    num_blocks=st.integers(1, 50),
)
@settings(deadline=None, max_examples=80)
def test_every_split_of_a_step_takes_the_same_blocks_in_the_same_order(
    seed: int, batch_size: int, accumulation: int, num_ranks: int, step: int, num_blocks: int
) -> None:
    plan = BatchPlan(seed=seed, batch_size=batch_size, accumulation=accumulation, num_ranks=num_ranks)
    sequences = batch_size * accumulation * num_ranks
    assert plan.sequences_per_step == sequences
    whole = one_batch_plan(seed, sequences)
    assert blocks_of_step(plan, step, num_blocks) == blocks_of_step(whole, step, num_blocks)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "num_ranks"), [(8, 1, 1), (2, 4, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)]
)
def test_the_splits_of_eight_sequences_agree(batch_size: int, accumulation: int, num_ranks: int) -> None:
    plan = BatchPlan(seed=5, batch_size=batch_size, accumulation=accumulation, num_ranks=num_ranks)
    for step in range(6):  # 13 blocks: steps 1, 3, 4 cross into the next epoch
        assert blocks_of_step(plan, step, 13) == blocks_of_step(one_batch_plan(5, 8), step, 13)


@given(seed=st.integers(0, 2**31), sequences=st.integers(1, 7), num_blocks=st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_every_block_comes_exactly_once_an_epoch(seed: int, sequences: int, num_blocks: int) -> None:
    epochs = 3
    plan = one_batch_plan(seed, sequences)
    steps = -(-epochs * num_blocks // sequences)
    order = [block for step in range(steps) for block in blocks_of_step(plan, step, num_blocks)]
    for epoch in range(epochs):
        assert sorted(order[epoch * num_blocks : (epoch + 1) * num_blocks]) == list(range(num_blocks))


def test_the_order_is_shuffled_anew_each_epoch_and_for_each_seed() -> None:
    def epoch(seed: int, number: int) -> tuple[int, ...]:
        return tuple(blocks_of_step(one_batch_plan(seed, 50), number, 50))

    orders = {epoch(seed, number) for seed in range(3) for number in range(3)}
    assert len(orders) == 9
    assert tuple(range(50)) not in orders


def test_a_step_depends_on_seed_and_number_alone_not_on_the_steps_before_it() -> None:
    plan = BatchPlan(seed=3, batch_size=2, accumulation=2)
    forwards = [list(plan.indices(step, 11)) for step in range(20)]
    backwards = [
        list(BatchPlan(seed=3, batch_size=2, accumulation=2).indices(step, 11)) for step in reversed(range(20))
    ]
    assert forwards == backwards[::-1]
    assert Counter(len(micro_batches) for micro_batches in forwards) == {2: 20}


def test_a_step_far_ahead_reads_its_own_blocks_only() -> None:
    read: list[int] = []

    class Endless:
        def __len__(self) -> int:
            return 10**10

        def read(self, index: int) -> Block:
            read.append(index)
            return Block(np.asarray([1, 2]), "general")

    began = time.perf_counter()
    step_batches(Endless(), BatchPlan(seed=0, batch_size=8, accumulation=2), 10**8)
    assert len(set(read)) == 16
    assert time.perf_counter() - began < 1


def test_the_order_of_a_seed_stays_what_it_is() -> None:
    # an interrupted run of an earlier version must go on with the same data
    assert list(BatchPlan(seed=0, batch_size=4, accumulation=2).indices(0, 10)) == [[9, 5, 7, 1], [6, 4, 8, 3]]


def test_step_batches_read_this_rank_s_micro_batches() -> None:
    blocks = Numbered(*[3] * 12)
    for rank in range(2):
        plan = BatchPlan(seed=1, batch_size=2, accumulation=3, num_ranks=2, rank=rank)
        batches = step_batches(blocks, plan, 1)
        assert [batch.input_ids[:, 0].tolist() for batch in batches] == list(plan.indices(1, 12))
