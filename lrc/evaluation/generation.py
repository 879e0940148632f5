"""What a model writes: tokens chosen by its own distribution, whatever the generation settings of its folder say."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig


@torch.no_grad()
def write_tokens(
    model: Any,
    inputs: dict[str, Tensor],
    *,
    max_new_tokens: int,
    pad_token_id: int | None,
    temperature: float = 0.0,
    streamer: Any = None,
) -> Tensor:
    """Continue a prompt.

    Of the folder's generation settings the token ids alone count: top-k, top-p, penalties and suppressed tokens would
    change the distribution, beams the choice.

    Args:
        model: Stock causal LM.
        inputs: `input_ids` and `attention_mask`, `[1, seq]` each.
        max_new_tokens: Longest continuation.
        pad_token_id: Padding; None: the model's own.
        temperature: 0 takes the likeliest token each time, above 0 samples from softmax(logits / temperature).
        streamer: Takes the tokens as they come, or None.

    Returns:
        `[1, seq + written]` ids, the prompt included.
    """
    stored = model.generation_config
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0}  # transformers' own is 50
    greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None}
    model.generation_config = GenerationConfig(bos_token_id=stored.bos_token_id, eos_token_id=stored.eos_token_id)
    try:
        output: Tensor = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            pad_token_id=stored.pad_token_id if pad_token_id is None else pad_token_id,
            streamer=streamer,
            **(sampling if temperature > 0 else greedy),
        )
    finally:
        model.generation_config = stored
    return output
