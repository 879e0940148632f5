"""llama.cpp as a reference: what it computes with a GGUF file, from the wheel `xllamacpp`."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrc.errors import NumericsError
from lrc.export.own_process import run_module

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class LlamaCppAnswers:
    """What llama.cpp said."""

    log_probabilities: Tensor
    """Log softmax of the logits, `[scored positions of all sequences, vocabulary]`, float64."""
    tokens: list[list[int]] = field(default_factory=list)
    """Token ids of each text, without added special tokens."""
    chats: list[str] = field(default_factory=list)
    """The answer to each chat, greedy."""


def has_llama_cpp() -> bool:
    """Whether llama.cpp is installed here, as the package xllamacpp."""
    return find_spec("xllamacpp") is not None


def ask_llama_cpp(
    gguf: Path,
    *,
    vocab_size: int = 0,
    every: int = 1,
    sequences: Sequence[Sequence[int]] = (),
    texts: Sequence[str] = (),
    chats: Sequence[Messages] = (),
    max_tokens: int = 64,
) -> LlamaCppAnswers:
    """Load a GGUF file in llama.cpp (CPU, flash attention off, float32 cache) and ask it.

    Args:
        gguf: The file.
        vocab_size: Size of the model's vocabulary; needed for sequences.
        every: Each how many-th position of a sequence is scored, from the first on.
        sequences: Token ids.
        texts: To be tokenised.
        chats: Each answered on its own by the chat template in the file.
        max_tokens: Longest answer.

    Raises:
        NumericsError: llama.cpp can't load the file, or ended while it answered.
    """
    with tempfile.TemporaryDirectory(prefix="lrc-llama-cpp-") as scratch:
        job = Path(scratch) / "job.json"
        content = {
            "model": str(gguf.resolve()),
            "vocab_size": vocab_size,
            "num_threads": torch.get_num_threads(),
            "every": every,
            "sequences": [list(ids) for ids in sequences],
            "texts": list(texts),
            "chats": list(chats),
            "max_tokens": max_tokens,
        }
        job.write_text(json.dumps(content), encoding="utf-8")
        failure = run_module("lrc.export.llama_cpp_worker", [str(job)], scratch=Path(scratch))
        if failure is not None:
            raise NumericsError(f"llama.cpp must load and run {gguf.name}, but ended with: {failure}")
        answers = json.loads((Path(scratch) / "answers.json").read_text(encoding="utf-8"))
        rows = torch.from_numpy(np.load(Path(scratch) / "log_probabilities.npy")).double()
    # llama.cpp sums the vocabulary's exponentials in float32, which is off by 1e-4; the differences are not
    for row in rows:  # in place: a whole vocabulary at a thousand positions is 400 MB
        row -= row.logsumexp(-1)
    return LlamaCppAnswers(log_probabilities=rows, tokens=answers["tokens"], chats=answers["chats"])
