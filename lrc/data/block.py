"""What training takes from any data: one block of token ids, its data class, and where documents start in it."""

from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
    """At most `sequence_length` token ids in a row."""

    ids: np.ndarray
    """`[tokens]` int64."""
    data_class: str
    document_starts: np.ndarray | None = None
    """Offsets in `ids` of the first token of each document that starts here, rising; None: one document."""


def positions_of(block: Block) -> np.ndarray:
    """Count positions `[tokens]` from 0, anew at each document; a document cut by the block's front starts at 0 too."""
    positions = np.arange(len(block.ids), dtype=np.int64)
    if block.document_starts is not None and len(block.document_starts):
        fronts = np.zeros_like(positions)
        fronts[block.document_starts] = block.document_starts
        positions -= np.maximum.accumulate(fronts)
    return positions


def first_outside(ids: list[int], vocab_size: int) -> int | None:
    """Return the first id that the vocabulary has not."""
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return None
    return next(value for value in ids if not 0 <= value < vocab_size)
