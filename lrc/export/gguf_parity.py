"""A GGUF file's logits in llama.cpp against the same student's in transformers, before the file is published.

Compared are logits less their log-sum-exp (log-probabilities): llama.cpp's server gives no others, and the one number a
position that is lost has no influence on any probability.
"""

from pathlib import Path
from typing import Any

import torch

from lrc.errors import NumericsError
from lrc.export.llama_cpp import ask_llama_cpp
from lrc.export.probe import (
    ODD_TEXT,
    SCORED_EVERY,
    TEXTS,
    chaotic_positions,
    compare,
    log_probabilities,
    probe_sequences,
)
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


MOST_CHAOTIC = 0.1
"""Share of the positions that may be left out because float32 does not settle their logits."""


def check_gguf_parity(student: Path, gguf: Path, *, kind: str, vocab_size: int) -> dict[str, Any]:
    """Compare llama.cpp with transformers in float32 on fixed sequences: three texts and random ids.

    Positions where float32 itself does not settle the logits (`probe.py:chaotic_positions`) are counted and left out.

    Returns:
        Content of `gguf_parity.json`.

    Raises:
        NumericsError: Tokens or logits differ by more than the kind allows; the file must not be published.
    """
    tokenizer = load_tokenizer(student)
    texts = [*TEXTS, ODD_TEXT]
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    sequences = probe_sequences(tokenizer, vocab_size)
    answers = ask_llama_cpp(gguf, vocab_size=vocab_size, every=SCORED_EVERY, sequences=sequences, texts=texts)
    for text, expected, found in zip(texts, tokens, answers.tokens, strict=True):
        if expected != found:
            raise NumericsError(_token_difference(gguf.name, text, expected, found))
    model = load_model(str(student), dtype=torch.float32, device=torch.device("cpu"))
    expected = log_probabilities(model, sequences)
    chaotic = chaotic_positions(model, sequences, expected)
    if float(chaotic.double().mean()) > MOST_CHAOTIC:
        raise NumericsError(
            f"{student} must have logits that float32 settles, but at {int(chaotic.sum())} of {len(chaotic)} positions "
            "a millionth of noise moves them by more than 5e-4. Nothing was published; train it for longer."
        )
    facts = compare(answers.log_probabilities[~chaotic], expected[~chaotic]) | {"chaotic_positions": int(chaotic.sum())}
    name, limit = LIMITS[kind]
    passed = facts[name] >= limit if name == "top1_agreement" else facts[name] <= limit
    if not passed:
        bound = "at least" if name == "top1_agreement" else "at most"
        raise NumericsError(
            f"{gguf.name} in llama.cpp must compute what {student} does in transformers: {name} {bound} {limit:g}, "
            f"found {facts[name]:.4g} (all: {facts}). Nothing was published."
        )
    return {"passed": passed, "kind": kind, "limit": {name: limit}} | facts | {"tokenised_alike": True}


def _token_difference(name: str, text: str, expected: list[int], found: list[int]) -> str:
    pairs = enumerate(zip(expected, found, strict=False))
    first = next((place for place, (one, other) in pairs if one != other), min(len(expected), len(found)))
    return (
        f"llama.cpp must split text as the student's tokenizer does, but for {text[:40]!r}... token {first} of {name} "
        f"is {found[first : first + 1]} instead of {expected[first : first + 1]}: the file names a wrong "
        f"pre-tokenizer. Nothing was published."
    )
