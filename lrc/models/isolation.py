"""Whether an architecture keeps packed documents apart when positions restart: tried on a tiny random model of it.

Stock attention does, for transformers reads the borders off the positions. Layers that carry a state along the sequence
(convolutions, linear attention, Mamba) don't, nor does a class that makes its mask without them (GPT-OSS in 5.23).
"""

from typing import Any

import torch

from lrc.errors import ConfigError
from lrc.models.tiny import random_model, tiny_config

FIRST_TOKENS, SECOND_TOKENS = 11, 9
"""Lengths of the two documents."""
WINDOW = 4
"""Sliding window of the tiny model, shorter than both documents."""
TOLERANCE = 1e-6
"""Largest change of a logit as a share of the largest logit, float32. Attention gives 0, bit for bit."""


@torch.no_grad()
def check_isolation(config: Any, *, setting: str = "data.document_masking") -> None:
    """Check that the second document of a sequence does not see the first.

    Args:
        config: The model's; unchanged.
        setting: The recipe's key that asks for it.

    Raises:
        ConfigError: It does, so `setting` can't hold.
    """
    tiny = tiny_config(config)
    if isinstance(getattr(tiny, "sliding_window", None), int):
        tiny.sliding_window = WINDOW
    model: Any = random_model(tiny)
    generator = torch.Generator().manual_seed(0)
    firsts = torch.randint(tiny.vocab_size, (2, FIRST_TOKENS), generator=generator)
    second = torch.randint(tiny.vocab_size, (1, SECOND_TOKENS), generator=generator)
    positions = torch.cat([torch.arange(FIRST_TOKENS), torch.arange(SECOND_TOKENS)])[None]
    one, other = (
        model(input_ids=torch.cat([first[None], second], dim=1), position_ids=positions, use_cache=False).logits[
            0, FIRST_TOKENS:
        ]
        for first in firsts
    )
    change = float((one - other).abs().max() / one.abs().max())
    if not change <= TOLERANCE:
        raise ConfigError(
            f"{setting} must keep documents apart, but {config.model_type} carries one document into the "
            f"next: in a tiny random model of it, another first document moves the second one's logits by {change:.2g} "
            f"of the largest. Set {setting}=false."
        )
