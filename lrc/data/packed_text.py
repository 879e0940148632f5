"""Raw text as blocks: tokenised once, packed as bos text eos, held in memory."""

import math
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from lrc.data.block import Block, first_outside
from lrc.data.encoder import with_boundaries
from lrc.data.row_text import BadRow, num_bytes
from lrc.data.rows import JsonLines
from lrc.errors import DataError


class PackedText:
    """Raw text rows, tokenised and packed as bos text eos into equal blocks; held in memory, eight bytes a token."""

    def __init__(
        self,
        rows: JsonLines,
        tokenizer: Any,
        *,
        sequence_length: int,
        vocab_size: int,
        tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Tokenise rows: all, or those from the front whose blocks hold `tokens` tokens; tells done and all rows."""
        self.rows = rows
        enough = math.inf if tokens is None else -(-tokens // sequence_length) * sequence_length
        ids, starts = array("q"), array("q")
        for index, row in enumerate(rows):
            if len(ids) >= enough:
                break
            text = row.get("text")
            if not isinstance(text, str):
                raise DataError(f'{rows.where(index)}: "text" must be a string, as in the first row.')
            try:
                num_bytes(text)
            except BadRow as reason:
                raise DataError(f'{rows.where(index)}: "text" holds {reason}. Mend the row or drop it.') from None
            starts.append(len(ids))
            plain = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            marked = with_boundaries(plain, tokenizer.bos_token_id, tokenizer.eos_token_id)
            wrong = first_outside(marked, vocab_size)
            if wrong is not None:
                raise DataError(
                    f"{rows.where(index)}: the tokenizer makes token id {wrong} of this text, which is outside the "
                    f"model's vocabulary (0 to {vocab_size - 1}). Use the tokenizer that the model was trained with."
                )
            ids.extend(marked)
            if progress is not None:
                progress(index + 1, len(rows))
        whole = len(ids) // sequence_length
        if whole == 0:
            raise DataError(
                f"{rows.files[0]} holds {len(ids)} tokens, fewer than one block of {sequence_length}. "
                "Add text or lower the sequence length."
            )
        self.blocks = np.frombuffer(ids, dtype=np.int64)[: whole * sequence_length].reshape(whole, sequence_length)
        self.starts = np.frombuffer(starts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.blocks)

    def read(self, index: int) -> Block:
        """Return block `index`, always full."""
        length = self.blocks.shape[1]
        first, last = np.searchsorted(self.starts, [index * length, (index + 1) * length])
        # an empty document of a tokenizer without marks starts where the next one does
        return Block(self.blocks[index], "general", np.unique(self.starts[first:last]) - index * length)

    def where(self, index: int) -> str:
        """Return `file:line` of the first and the last text in the block."""
        length = self.blocks.shape[1]
        first = int(np.searchsorted(self.starts, index * length, side="right")) - 1
        last = int(np.searchsorted(self.starts, (index + 1) * length)) - 1
        return self.rows.where(first) if first == last else f"{self.rows.where(first)} to {self.rows.where(last)}"
