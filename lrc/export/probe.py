"""Fixed token sequences on which an export is held against its student, and the measures of how far they are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrc.export.probe_texts import TEXTS

SHORT_TEXTS, RANDOM_WINDOWS = 3, 2
WINDOW_TOKENS = 64
WHOLE_VOCABULARY = 65_536
"""Tokens of a vocabulary up to which every position is scored by llama.cpp, whose server writes all of them out."""
NOISE, CHAOS = 1e-6, 5e-4
"""Relative noise on the embeddings, and how far it may move a log-probability."""


def probe_sequences(tokenizer: Any, vocab_size: int) -> list[list[int]]:
    """Return the short probe: 64 tokens of three texts if there is a tokenizer, and 64 random ids of the vocabulary."""
    return _texts(tokenizer, TEXTS[:SHORT_TEXTS]) + _random_ids(vocab_size, 1)


def probe_windows(tokenizer: Any, vocab_size: int) -> list[list[int]]:
    """Return the long probe: 64 tokens of each text, then two windows of random ids, 512 in all."""
    return _texts(tokenizer, TEXTS) + _random_ids(vocab_size, RANDOM_WINDOWS)


def scored_every(vocab_size: int) -> int:
    """Return each how many-th position of the long probe is scored: the larger the vocabulary, the fewer."""
    return -(-vocab_size // WHOLE_VOCABULARY)


def _texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if tokenizer is None:
        return []
    return [tokenizer.encode(text, add_special_tokens=False)[:WINDOW_TOKENS] for text in texts]


def _random_ids(vocab_size: int, count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocab_size, (WINDOW_TOKENS,), generator=generator).tolist() for _ in range(count)]


@torch.no_grad()
def log_probabilities(model: nn.Module, sequences: list[list[int]], *, every: int = 1) -> Tensor:
    """Return log softmax of a model's logits at the scored positions, `[positions, vocabulary]`, float64."""
    logits = [model(input_ids=torch.tensor([ids])).logits[0, ::every] for ids in sequences]
    return torch.cat(logits).double().log_softmax(-1)


@torch.no_grad()
def chaotic_positions(model: nn.Module, sequences: list[list[int]], expected: Tensor, *, every: int = 1) -> Tensor:
    """Find the scored positions where float32 itself does not settle the logits.

    A token can sit at the edge of setting off a massive activation; there the last bit of a sum decides, and two right
    programs differ. They are found by multiplying the embedding's output by 1 plus noise of a millionth.

    Args:
        model: In float32.
        sequences: The probe's.
        expected: What `log_probabilities` made of them.
        every: As there.

    Returns:
        `[positions]` bool: a log-probability moves by more than 5e-4.
    """
    generator = torch.Generator().manual_seed(0)

    def disturb(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * (1 + NOISE * torch.randn(output.shape, generator=generator))

    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]  # of every stock model
    handle = embedding.register_forward_hook(disturb)
    try:
        moved = (log_probabilities(model, sequences, every=every) - expected).abs().amax(-1)
    finally:
        handle.remove()
    return moved > CHAOS


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How far two models are apart at each position, each `[positions]`."""

    largest: Tensor
    """Largest difference of a log-probability."""
    kl: Tensor
    """KL(expected || found) in nats."""
    is_same_choice: Tensor
    """Whether both rank the same token first."""

    def at(self, chosen: Tensor) -> "Differences":
        """Return those at the positions where `chosen`, `[positions]` bool, holds."""
        return Differences(largest=self.largest[chosen], kl=self.kl[chosen], is_same_choice=self.is_same_choice[chosen])

    def summary(self) -> dict[str, float | int]:
        """Return the largest difference, and means over the positions, of which there must be one."""
        return {
            "max_abs_difference": float(self.largest.max()),
            "kl": float(self.kl.mean()),
            "top1_agreement": float(self.is_same_choice.double().mean()),
            "positions": len(self.kl),
        }


def differences(found: Tensor, expected: Tensor) -> Differences:
    """Measure log-probabilities `[positions, vocabulary]` against others, in float64."""
    return Differences(
        largest=(found - expected).abs().amax(-1),
        kl=(expected.exp() * (expected - found)).sum(-1),
        is_same_choice=found.argmax(-1) == expected.argmax(-1),
    )


def joined(parts: Sequence[Differences]) -> Differences:
    """Return the positions of several parts one after the other."""
    return Differences(
        largest=torch.cat([part.largest for part in parts]),
        kl=torch.cat([part.kl for part in parts]),
        is_same_choice=torch.cat([part.is_same_choice for part in parts]),
    )


def compare(found: Tensor, expected: Tensor) -> dict[str, float | int]:
    """Compare log-probabilities `[positions, vocabulary]` in float64: means over positions, KL(expected || found)."""
    return differences(found, expected).summary()
