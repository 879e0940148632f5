"""A GGUF file's logits in llama.cpp against the same student's in transformers, before the file is published.

Compared are logits less their log-sum-exp (log-probabilities): llama.cpp's server gives no others, and the one number a
position that is lost has no influence on any probability.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrc.errors import NumericsError
from lrc.export.llama_cpp import LlamaCppAnswers, ask_llama_cpp
from lrc.export.probe import (
    Differences,
    chaotic_positions,
    differences,
    joined,
    log_probabilities,
    probe_windows,
    scored_every,
)
from lrc.export.probe_texts import ODD_TEXT, TEXTS
from lrc.models.teacher import load_model, load_tokenizer

LIMITS: dict[str, tuple[str, float]] = {
    "f32": ("max_abs_difference", 1e-3),
    "f16": ("top1_agreement", 0.99),
    "q8_0": ("kl", 1e-2),
    "q5_0": ("kl", 0.5),
    "q4_k_m": ("kl", 0.5),
}
"""What decides for each kind: for f32 at every settled position, for the others over those of text. What 5 and 4 bits
cost is the student's own: their limit only tells a lossy file from a broken one."""
MOST_CHAOTIC = 0.1
"""Share of the positions that f32's largest difference may leave out because float32 does not settle their logits."""


def check_gguf_parity(student: Path, gguf: Path, *, kind: str, vocab_size: int) -> dict[str, Any]:
    """Compare llama.cpp with transformers in float32 on fixed sequences: six texts and two windows of random ids.

    The largest difference, which decides for f32, is one position's, so there it is of the positions that float32
    itself settles (`probe.py:chaotic_positions`), random ids included: they reach words that no text has. What a lossy
    file costs is a mean over what models are asked, text, and all of its positions count.

    Returns:
        Content of `gguf_parity.json`.

    Raises:
        NumericsError: Tokens or logits differ by more than the kind allows; the file must not be published.
    """
    tokenizer = load_tokenizer(student)
    texts = [*TEXTS, ODD_TEXT]
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    windows, every = probe_windows(tokenizer, vocab_size), scored_every(vocab_size)
    answers = ask_llama_cpp(gguf, vocab_size=vocab_size, every=every, sequences=windows, texts=texts)
    for text, expected, found in zip(texts, tokens, answers.tokens, strict=True):
        if expected != found:
            raise NumericsError(_token_difference(gguf.name, text, expected, found))
    measured, chaotic = _measure(student, answers, windows, every)
    if kind == "f32" and float(chaotic.double().mean()) > MOST_CHAOTIC:
        raise NumericsError(
            f"{student} must have logits that float32 settles, but at {int(chaotic.sum())} of {len(chaotic)} positions "
            "a millionth of noise moves them by more than 5e-4. Nothing was published; train it for longer."
        )
    facts: dict[str, Any] = measured.summary() | {"chaotic_positions": int(chaotic.sum())}
    facts["settled"] = {"positions": 0} if chaotic.all() else measured.at(~chaotic).summary()
    num_text = sum(len(ids[::every]) for ids in windows[: len(TEXTS)])
    facts["text"] = measured.at(torch.arange(len(chaotic)) < num_text).summary()
    name, limit = LIMITS[kind]
    value = facts["settled" if kind == "f32" else "text"][name]
    passed = value >= limit if name == "top1_agreement" else value <= limit
    if not passed:
        bound = "at least" if name == "top1_agreement" else "at most"
        raise NumericsError(
            f"{gguf.name} in llama.cpp must compute what {student} does in transformers: {name} {bound} {limit:g}, "
            f"found {value:.4g} (all: {facts}). Nothing was published."
        )
    return {"passed": passed, "kind": kind, "limit": {name: limit}} | facts | {"tokenised_alike": True}


def _measure(
    student: Path, answers: LlamaCppAnswers, windows: list[list[int]], every: int
) -> tuple[Differences, Tensor]:
    """Return the differences at every position and which of them are chaotic, window by window to save memory."""
    model = load_model(str(student), dtype=torch.float32, device=torch.device("cpu"))
    measured, chaotic, start = [], [], 0
    for ids in windows:
        expected = log_probabilities(model, [ids], every=every)
        measured.append(differences(answers.log_probabilities[start : start + len(expected)], expected))
        chaotic.append(chaotic_positions(model, [ids], expected, every=every))
        start += len(expected)
    assert start == len(answers.log_probabilities), (start, len(answers.log_probabilities))
    return joined(measured), torch.cat(chaotic)


def _token_difference(name: str, text: str, expected: list[int], found: list[int]) -> str:
    pairs = enumerate(zip(expected, found, strict=False))
    first = next((place for place, (one, other) in pairs if one != other), min(len(expected), len(found)))
    return (
        f"llama.cpp must split text as the student's tokenizer does, but for {text[:40]!r}... token {first} of {name} "
        f"is {found[first : first + 1]} instead of {expected[first : first + 1]}: the file names a wrong "
        f"pre-tokenizer. Nothing was published."
    )
