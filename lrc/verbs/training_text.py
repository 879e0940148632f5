"""Opens what a recipe trains on and measures, with progress where that takes long."""

import os
from typing import Any

from torch import Tensor

from lrc.data.blocks import Blocks, open_blocks, ordered_batches
from lrc.data_config import DataConfig
from lrc.training.launch_environment import launched_rank
from lrc.verbs.progress import progress_once_called
from lrc.verbs.sources import locate_data


def open_text(source: str, tokenizer: Any, *, sequence_length: int, vocab_size: int) -> Blocks:
    """Open data as `lrc/data/blocks.py:open_blocks` does; the first process says how far it is with much raw text.

    Args:
        source: The recipe's `data.train` or `data.held_out`.
        tokenizer: The teacher's.
        sequence_length: Longest block.
        vocab_size: Ids must be below it.

    Raises:
        DataError: The data can't be used.
    """
    with progress_once_called("tokenise", "rows") as progress:
        return open_blocks(
            locate_data(source),
            tokenizer,
            sequence_length=sequence_length,
            vocab_size=vocab_size,
            progress=progress if launched_rank(os.environ) == 0 else None,
        )


def held_out_windows(settings: DataConfig, tokenizer: Any, *, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the held-out text in windows, inputs and labels each `[1, sequence_length]` int64; of none an empty list.

    Args:
        settings: The recipe's `data`.
        tokenizer: The teacher's.
        vocab_size: Ids must be below it.

    Raises:
        DataError: The text can't be used.
    """
    if settings.held_out is None:
        return []
    length = settings.sequence_length
    source = open_text(settings.held_out, tokenizer, sequence_length=length, vocab_size=vocab_size)
    batches = ordered_batches(source, tokens=settings.held_out_tokens, batch_size=1)
    return [(batch.input_ids, batch.labels) for batch in batches]
