"""Blocks of token ids, and batches of them in an order that is a function of seed and step alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lrc.clone.head import IGNORED_LABEL
from lrc.data.rows import JsonLines
from lrc.errors import DataError


class Blocks(Protocol):
    """Token blocks by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[np.ndarray, str]:
        """Return a block's ids `[at most sequence_length]` and its data class."""
        ...


class TokenisedBlocks:
    """Blocks of the published format, one row each, read from disk when asked for."""

    def __init__(self, rows: JsonLines, *, sequence_length: int, vocab_size: int) -> None:
        self.rows = rows
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> tuple[np.ndarray, str]:
        """Return row `index`, cut to the sequence length.

        Raises:
            DataError: The row has no `input_ids`, an empty list, or an id outside the vocabulary.
        """
        row = self.rows.read(index)
        ids = row.get("input_ids")
        where = self.rows.where(index)
        if not isinstance(ids, list) or not ids or not all(type(value) is int for value in ids):
            raise DataError(f'{where}: "input_ids" must be a list of at least one whole number.')
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            wrong = next(value for value in ids if not 0 <= value < self.vocab_size)
            raise DataError(
                f"{where}: token id {wrong} is outside the teacher's vocabulary (0 to {self.vocab_size - 1}). "
                "Tokenise the data with the teacher's own tokenizer."
            )
        return np.asarray(ids[: self.sequence_length], dtype=np.int64), str(row.get("data_cls", "general"))


class PackedText:
    """Raw text rows, tokenised and packed as bos text eos into equal blocks; held in memory."""

    def __init__(self, rows: JsonLines, tokenizer: Any, *, sequence_length: int) -> None:
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ids: list[int] = []
        for index in range(len(rows)):
            text = rows.read(index).get("text")
            if not isinstance(text, str):
                raise DataError(f'{rows.where(index)}: "text" must be a string, as in the first row.')
            ids += [*bos, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], *eos]
        whole = len(ids) // sequence_length
        if whole == 0:
            raise DataError(
                f"{rows.files[0]} holds {len(ids)} tokens, fewer than one block of {sequence_length}. "
                "Add text or lower the sequence length."
            )
        self.blocks = np.asarray(ids[: whole * sequence_length], dtype=np.int64).reshape(whole, sequence_length)

    def __len__(self) -> int:
        return len(self.blocks)

    def read(self, index: int) -> tuple[np.ndarray, str]:
        """Return block `index`, always full."""
        return self.blocks[index], "general"


def open_blocks(source: str, tokenizer: Any, *, sequence_length: int, vocab_size: int) -> Blocks:
    """Open JSONL data, tokenised or text as its first row is.

    Args:
        source: File, folder or glob.
        tokenizer: The teacher's; only text rows need it.
        sequence_length: Longest block.
        vocab_size: Ids must be below it.

    Raises:
        DataError: The data can't be used; the first and the last row are read at once.
    """
    rows = JsonLines(source)
    first = rows.read(0)
    if "input_ids" in first:
        blocks = TokenisedBlocks(rows, sequence_length=sequence_length, vocab_size=vocab_size)
        for index in {0, len(rows) - 1}:
            blocks.read(index)
        return blocks
    if "text" in first:
        if tokenizer is None:
            raise DataError(f"{source} holds text, but the teacher's folder has no tokenizer.")
        return PackedText(rows, tokenizer, sequence_length=sequence_length)
    raise DataError(f'{rows.where(0)}: a row must have "input_ids" or "text", found {sorted(first)}.')


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, on the CPU."""

    input_ids: Tensor
    """`[batch, seq]` int64, padded on the right with 0."""
    labels: Tensor
    """`[batch, seq]` int64, the next token, or -100."""
    valid: Tensor
    """`[batch, seq]` bool, False for padding."""
    data_classes: tuple[str, ...]

    @property
    def labels_per_row(self) -> list[int]:
        return [int(count) for count in (self.labels != IGNORED_LABEL).sum(-1)]

    @property
    def num_labels(self) -> int:
        return sum(self.labels_per_row)

    @property
    def num_positions(self) -> int:
        return int(self.valid.sum())


def collate(blocks: list[tuple[np.ndarray, str]]) -> Batch:
    """Pad blocks on the right to the longest and shift labels."""
    longest = max(len(ids) for ids, _ in blocks)
    input_ids = torch.zeros(len(blocks), longest, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    valid = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (ids, _) in enumerate(blocks):
        tokens = torch.from_numpy(np.ascontiguousarray(ids))
        input_ids[row, : len(ids)] = tokens
        labels[row, : len(ids) - 1] = tokens[1:]
        valid[row, : len(ids)] = True
    return Batch(input_ids=input_ids, labels=labels, valid=valid, data_classes=tuple(name for _, name in blocks))


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which blocks a step takes: block number = f(seed, position), whatever the ranks and micro-batches."""

    seed: int
    batch_size: int
    """Sequences of one micro-batch on one rank."""
    accumulation: int
    num_ranks: int = 1
    rank: int = 0

    @property
    def sequences_per_step(self) -> int:
        return self.batch_size * self.accumulation * self.num_ranks

    def indices(self, step: int, num_blocks: int) -> Iterator[list[int]]:
        """Yield this rank's block numbers of a step (from 0), a list a micro-batch."""
        for micro in range(self.accumulation):
            first = step * self.sequences_per_step + (micro * self.num_ranks + self.rank) * self.batch_size
            yield [_shuffled(self.seed, first + offset, num_blocks) for offset in range(self.batch_size)]


def step_batches(blocks: Blocks, plan: BatchPlan, step: int) -> list[Batch]:
    """Read this rank's micro-batches of a step."""
    return [collate([blocks.read(index) for index in indices]) for indices in plan.indices(step, len(blocks))]


def ordered_batches(blocks: Blocks, *, tokens: int, batch_size: int) -> list[Batch]:
    """Read blocks from the front, in file order, until they hold `tokens` tokens (or the data ends)."""
    chosen, found = [], 0
    for index in range(len(blocks)):
        if found >= tokens:
            break
        chosen.append(blocks.read(index))
        found += len(chosen[-1][0])
    return [collate(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size)]


def _shuffled(seed: int, position: int, num_blocks: int) -> int:
    epoch, offset = divmod(position, num_blocks)
    return int(_permutation(seed, epoch, num_blocks)[offset])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_blocks: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_blocks)
