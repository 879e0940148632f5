"""A GGUF file's logits in llama.cpp against the same student's in transformers, before the file is published.

Compared are logits less their log-sum-exp (log-probabilities): llama.cpp's server gives no others, and the one number a
position that is lost has no influence on any probability.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrc.errors import NumericsError
from lrc.export.llama_cpp import ask_llama_cpp
from lrc.models.teacher import load_model, load_tokenizer

LIMITS: dict[str, tuple[str, float]] = {
    "f32": ("max_abs_difference", 1e-3),
    "f16": ("top1_agreement", 0.99),
    "q8_0": ("kl", 1e-2),
    "q5_0": ("kl", 0.5),
    "q4_k_m": ("kl", 0.5),
}
"""What decides for each kind. What 5 and 4 bits cost is the student's own: their limit only tells a lossy file from a
broken one."""
SEQUENCE_TOKENS = 64
NUM_RANDOM_TOKENS = 64
TEXTS = (
    "The river rises in the hills, runs south for 140 miles and meets the sea near a small town. In 1897 a bridge was "
    "built there; it's still in use today, and nobody knows who paid for it. Its arches have stood in every flood.",
    "To bake bread you need flour, water, salt and time. Mix 500 g of flour with 325 ml of water, let it rest for an "
    "hour, then fold the dough (3 or 4 times) and wait again.\n\nWe've tried it ourselves: don't hurry!",
    "def area(width, height):\n    return width * height  # both in metres\n\nprint(area(2.5, 10))\n\n"
    "The function returns 25.0, as you'd expect; call it with other values and compare what you get.",
)
"""Text of three kinds; also what llama.cpp must tokenise as transformers does, with the next one."""
ODD_TEXT = "  Ünïcode \u2014 na\u00efve caf\u00e9, \u043f\u0440\u0438\u0432\u0435\u0442, \u4f60\u597d 12345 x_1\t!?\n"


def check_gguf_parity(student: Path, gguf: Path, *, kind: str, vocab_size: int) -> dict[str, Any]:
    """Compare llama.cpp with transformers in float32 on fixed sequences: three texts and random ids.

    Returns:
        Content of `gguf_parity.json`.

    Raises:
        NumericsError: Tokens or logits differ by more than the kind allows; the file must not be published.
    """
    tokenizer = load_tokenizer(student)
    texts = [*TEXTS, ODD_TEXT]
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    sequences = [ids[:SEQUENCE_TOKENS] for ids in tokens[: len(TEXTS)]] + [_random_ids(vocab_size)]
    answers = ask_llama_cpp(gguf, vocab_size=vocab_size, sequences=sequences, texts=texts)
    for text, expected, found in zip(texts, tokens, answers.tokens, strict=True):
        if expected != found:
            raise NumericsError(_token_difference(gguf.name, text, expected, found))
    facts = compare(answers.log_probabilities, _reference(student, sequences))
    name, limit = LIMITS[kind]
    passed = facts[name] >= limit if name == "top1_agreement" else facts[name] <= limit
    if not passed:
        bound = "at least" if name == "top1_agreement" else "at most"
        raise NumericsError(
            f"{gguf.name} in llama.cpp must compute what {student} does in transformers: {name} {bound} {limit:g}, "
            f"found {facts[name]:.4g} (all: {facts}). Nothing was published."
        )
    return {"passed": passed, "kind": kind, "limit": {name: limit}} | facts | {"tokenised_alike": True}


def compare(found: Tensor, expected: Tensor) -> dict[str, float | int]:
    """Compare log-probabilities `[positions, vocabulary]` in float64: means over positions, KL(expected || found)."""
    return {
        "max_abs_difference": float((found - expected).abs().max()),
        "kl": float((expected.exp() * (expected - found)).sum(-1).mean()),
        "top1_agreement": float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
        "positions": len(expected),
    }


def _random_ids(vocab_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return [int(token) for token in torch.randint(0, vocab_size, (NUM_RANDOM_TOKENS,), generator=generator)]


@torch.no_grad()
def _reference(student: Path, sequences: list[list[int]]) -> Tensor:
    model = load_model(str(student), dtype=torch.float32, device=torch.device("cpu"))
    logits = [model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences]
    return torch.cat(logits).double().log_softmax(-1)


def _token_difference(name: str, text: str, expected: list[int], found: list[int]) -> str:
    pairs = enumerate(zip(expected, found, strict=False))
    first = next((place for place, (one, other) in pairs if one != other), min(len(expected), len(found)))
    return (
        f"llama.cpp must split text as the student's tokenizer does, but for {text[:40]!r}... token {first} of {name} "
        f"is {found[first : first + 1]} instead of {expected[first : first + 1]}: the file names a wrong "
        f"pre-tokenizer. Nothing was published."
    )
