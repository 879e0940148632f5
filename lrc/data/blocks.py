"""Blocks of token ids, and batches of them in an order that is a function of seed and step alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lrc.clone.head import IGNORED_LABEL
from lrc.data.block import Block, first_outside, positions_of
from lrc.data.line_index import INDEXED_BYTES, PREPARED
from lrc.data.order import shuffled
from lrc.data.packed_text import PackedText
from lrc.data.rows import JsonLines
from lrc.data.shards import MANIFEST, ShardBlocks
from lrc.data.tokenizer_hash import tokenizer_sha256
from lrc.errors import DataError


class Blocks(Protocol):
    """Token blocks by number."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Block:
        """Return a block of at most `sequence_length` ids."""
        ...

    def where(self, index: int) -> str:
        """Name the file and the lines or documents that a block comes from."""
        ...


class TokenisedBlocks:
    """Blocks of the published format, one row each, read from disk when asked for."""

    def __init__(self, rows: JsonLines, *, sequence_length: int, vocab_size: int) -> None:
        self.rows = rows
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Block:
        """Return row `index`, cut to the sequence length.

        Raises:
            DataError: The row has no `input_ids`, an empty list, or an id outside the vocabulary.
        """
        row = self.rows.read(index)
        ids = self._ids(row, index)
        return Block(np.asarray(ids[: self.sequence_length], dtype=np.int64), str(row.get("data_cls", "general")))

    def check(self) -> None:
        """Read every row.

        Raises:
            DataError: As `read`.
        """
        for index, row in enumerate(self.rows):
            self._ids(row, index)

    def _ids(self, row: dict[str, Any], index: int) -> list[int]:
        ids = row.get("input_ids")
        if not isinstance(ids, list) or not ids or not all(type(value) is int for value in ids):
            raise DataError(f'{self.where(index)}: "input_ids" must be a list of at least one whole number.')
        wrong = first_outside(ids, self.vocab_size)
        if wrong is not None:
            raise DataError(
                f"{self.where(index)}: token id {wrong} is outside the teacher's vocabulary (0 to "
                f"{self.vocab_size - 1}). Tokenise the data with the teacher's own tokenizer."
            )
        return ids

    def where(self, index: int) -> str:
        """Return `file:line`."""
        return self.rows.where(index)


def open_blocks(
    source: str,
    tokenizer: Any,
    *,
    sequence_length: int,
    vocab_size: int,
    text_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Blocks:
    """Open token shards, or JSONL data, tokenised or text as its first row is.

    Args:
        source: Folder of shards, or a file, folder or glob of JSONL.
        tokenizer: The teacher's; only text rows need it, shards must have been made with it.
        sequence_length: Longest block.
        vocab_size: Ids must be below it.
        text_tokens: Tokens to make of text rows, the first ones, in whole blocks; None: all.
        progress: Takes done and all rows while text of `INDEXED_BYTES` or more is tokenised.

    Raises:
        DataError: The data can't be used. Of rows with ids all are read if the files have fewer than `INDEXED_BYTES`,
            else the first and the last one.
    """
    if (Path(source) / MANIFEST).is_file():
        sha256 = None if tokenizer is None else tokenizer_sha256(tokenizer)
        return ShardBlocks(
            Path(source), sequence_length=sequence_length, vocab_size=vocab_size, tokenizer_sha256=sha256
        )
    rows = JsonLines(source)
    first = rows.read(0)
    if "input_ids" in first:
        blocks = TokenisedBlocks(rows, sequence_length=sequence_length, vocab_size=vocab_size)
        if rows.num_bytes < INDEXED_BYTES:
            blocks.check()
        else:
            for index in (0, len(rows) - 1):
                blocks.read(index)
        return blocks
    if "text" in first:
        if tokenizer is None:
            raise DataError(f"{source} holds text, but the teacher's folder has no tokenizer.")
        return PackedText(
            rows,
            tokenizer,
            sequence_length=sequence_length,
            vocab_size=vocab_size,
            tokens=text_tokens,
            progress=progress if rows.num_bytes >= INDEXED_BYTES else None,
        )
    raise DataError(f'{rows.where(0)}: a row must have "input_ids" or "text", found {sorted(first)}. {PREPARED}')


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, made on the CPU."""

    input_ids: Tensor
    """`[batch, seq]` int64, padded on the right with 0."""
    labels: Tensor
    """`[batch, seq]` int64, the next token, or -100."""
    valid: Tensor
    """`[batch, seq]` bool, False for padding."""
    data_classes: tuple[str, ...]
    positions: Tensor | None = None
    """`[batch, seq]` int64 counted from 0 in each document; None: documents see those before them in the sequence."""

    def to(self, device: torch.device) -> "Batch":
        """Return it on a device; to a GPU tensors are copied from pinned memory, which nothing waits for."""

        def there(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

        return replace(
            self,
            input_ids=there(self.input_ids),
            labels=there(self.labels),
            valid=there(self.valid),
            positions=None if self.positions is None else there(self.positions),
        )

    @property
    def labels_per_row(self) -> list[int]:
        return [int(count) for count in (self.labels != IGNORED_LABEL).sum(-1)]

    @property
    def num_labels(self) -> int:
        return sum(self.labels_per_row)

    @property
    def num_positions(self) -> int:
        return int(self.valid.sum())


def collate(blocks: list[Block], *, document_masking: bool = False) -> Batch:
    """Pad blocks on the right to the longest and shift labels.

    Args:
        blocks: The rows.
        document_masking: Give positions that restart at each document, and no label to a document's last token.
    """
    longest = max(len(block.ids) for block in blocks)
    input_ids = torch.zeros(len(blocks), longest, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    valid = torch.zeros_like(input_ids, dtype=torch.bool)
    positions = torch.arange(longest).repeat(len(blocks), 1)
    for row, block in enumerate(blocks):
        length = len(block.ids)
        tokens = torch.from_numpy(np.ascontiguousarray(block.ids))
        input_ids[row, :length] = tokens
        labels[row, : length - 1] = tokens[1:]
        valid[row, :length] = True
        if document_masking:
            positions[row, :length] = torch.from_numpy(positions_of(block))
            # padding counts on from the last document: attention is causal, so no valid token sees it
            positions[row, length:] = positions[row, length - 1] + torch.arange(1, longest - length + 1)
            labels[row, : length - 1][positions[row, 1:length] == 0] = IGNORED_LABEL
    return Batch(
        input_ids=input_ids,
        labels=labels,
        valid=valid,
        data_classes=tuple(block.data_class for block in blocks),
        positions=positions if document_masking else None,
    )


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
            yield [shuffled(self.seed, first + offset, num_blocks) for offset in range(self.batch_size)]


def step_batches(blocks: Blocks, plan: BatchPlan, step: int, *, document_masking: bool = False) -> list[Batch]:
    """Read this rank's micro-batches of a step."""
    return [
        collate([blocks.read(index) for index in indices], document_masking=document_masking)
        for indices in plan.indices(step, len(blocks))
    ]


def ordered_batches(blocks: Blocks, *, tokens: int, batch_size: int) -> list[Batch]:
    """Read blocks from the front, in file order, until they hold `tokens` tokens (or the data ends)."""
    chosen: list[Block] = []
    found = 0
    for index in range(len(blocks)):
        if found >= tokens:
            break
        chosen.append(blocks.read(index))
        found += len(chosen[-1].ids)
    return [collate(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size)]
