"""Fixed token sequences on which an export is held against its student, and the measures of how far they are apart."""

from typing import Any

import torch
from torch import Tensor, nn

SEQUENCE_TOKENS = 64
NUM_RANDOM_TOKENS = 64
SCORED_EVERY = 2
"""Each how many-th position is compared: llama.cpp's server takes half a second to write a vocabulary of 49,152 out."""
NOISE, CHAOS = 1e-6, 5e-4
"""Relative noise on the embeddings, and how far it may move a log-probability."""
TEXTS = (
    "The river rises in the hills, runs south for 140 miles and meets the sea near a small town. In 1897 a bridge was "
    "built there; it's still in use today, and nobody knows who paid for it. Its arches have stood in every flood.",
    "To bake bread you need flour, water, salt and time. Mix 500 g of flour with 325 ml of water, let it rest for an "
    "hour, then fold the dough (3 or 4 times) and wait again.\n\nWe've tried it ourselves: don't hurry!",
    "def area(width, height):\n    return width * height  # both in metres\n\nprint(area(2.5, 10))\n\n"
    "The function returns 25.0, as you'd expect; call it with other values and compare what you get.",
)
"""Text of three kinds."""
ODD_TEXT = "  Ünïcode \u2014 na\u00efve caf\u00e9, \u043f\u0440\u0438\u0432\u0435\u0442, \u4f60\u597d 12345 x_1\t!?\n"
"""What a tokenizer may split in an unusual way."""


def probe_sequences(tokenizer: Any, vocab_size: int) -> list[list[int]]:
    """Return the sequences: the beginning of each text if there is a tokenizer, and random ids of the vocabulary."""
    texts = [] if tokenizer is None else [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    generator = torch.Generator().manual_seed(0)
    random_ids = torch.randint(0, vocab_size, (NUM_RANDOM_TOKENS,), generator=generator)
    return [ids[:SEQUENCE_TOKENS] for ids in texts] + [[int(token) for token in random_ids]]


@torch.no_grad()
def log_probabilities(model: nn.Module, sequences: list[list[int]]) -> Tensor:
    """Return log softmax of a model's logits at the scored positions, `[positions, vocabulary]`, float64."""
    logits = [model(input_ids=torch.tensor([ids])).logits[0, ::SCORED_EVERY] for ids in sequences]
    return torch.cat(logits).double().log_softmax(-1)


@torch.no_grad()
def chaotic_positions(model: nn.Module, sequences: list[list[int]], expected: Tensor) -> Tensor:
    """Find the scored positions where float32 itself does not settle the logits.

    A token can sit at the edge of setting off a massive activation; there the last bit of a sum decides, and two right
    programs differ. They are found by multiplying the embedding's output by 1 plus noise of a millionth.

    Args:
        model: In float32.
        sequences: The probe's.
        expected: What `log_probabilities` made of them.

    Returns:
        `[positions]` bool: a log-probability moves by more than 5e-4.
    """
    generator = torch.Generator().manual_seed(0)

    def disturb(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * (1 + NOISE * torch.randn(output.shape, generator=generator))

    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]  # of every stock model
    handle = embedding.register_forward_hook(disturb)
    try:
        moved = (log_probabilities(model, sequences) - expected).abs().amax(-1)
    finally:
        handle.remove()
    return moved > CHAOS


def compare(found: Tensor, expected: Tensor) -> dict[str, float | int]:
    """Compare log-probabilities `[positions, vocabulary]` in float64: means over positions, KL(expected || found)."""
    return {
        "max_abs_difference": float((found - expected).abs().max()),
        "kl": float((expected.exp() * (expected - found)).sum(-1).mean()),
        "top1_agreement": float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
        "positions": len(expected),
    }
