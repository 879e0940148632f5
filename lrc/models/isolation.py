"""Whether an architecture keeps packed documents apart when positions restart: tried on the teacher itself.

Attention layers do; layers that carry a state along the sequence (convolutions, linear attention, Mamba) don't.
"""

from typing import Any

import torch
from torch import nn

from lrc.errors import ConfigError

PROBE_TOKENS = 8
"""Length of each of the two documents."""
TOLERANCE = 1e-2
"""Relative change allowed at any position: experts may group tokens otherwise, which rounds otherwise."""


@torch.no_grad()
def check_isolation(teacher: nn.Module) -> None:
    """Check that the second document of a sequence does not see the first.

    Args:
        teacher: Stock causal LM.

    Raises:
        ConfigError: It does, so `data.document_masking` can't hold.
    """
    base: Any = teacher.base_model
    vocab_size: int = base.config.vocab_size
    device = next(teacher.parameters()).device
    second = torch.arange(PROBE_TOKENS) % vocab_size
    firsts = torch.stack([torch.arange(PROBE_TOKENS) + offset for offset in (1, vocab_size // 2)]) % vocab_size
    positions = torch.arange(PROBE_TOKENS, device=device).repeat(1, 2)
    states = [
        base(
            input_ids=torch.cat([first, second])[None].to(device), position_ids=positions, use_cache=False
        ).last_hidden_state[0, PROBE_TOKENS:]
        for first in firsts
    ]
    one, other = (state.float() for state in states)
    change = float(((one - other).norm(dim=-1) / one.norm(dim=-1)).max())
    if not change <= TOLERANCE:
        raise ConfigError(
            f"data.document_masking must keep documents apart, but {base.config.model_type} has layers that carry one "
            f"document into the next (changing the first moves the second by {change:.2g}). Set "
            "data.document_masking=false."
        )
