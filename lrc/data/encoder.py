"""A tokenizer as the workers of `lrc prepare` use it: its fast backend and boundary tokens, saved with the shards.

Workers open it without importing transformers, which takes longer than tokenising ten megabytes; only chat templates
and slow tokenizers need that.
"""

import json
import os
from array import array
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FACTS = "encoder.json"
BACKEND = "encoder_backend.json"


class Encoded(NamedTuple):
    """Documents end to end, each with its boundary tokens."""

    ids: np.ndarray
    """`[tokens]` uint32."""
    lengths: np.ndarray
    """Tokens of each document, `[documents]` int64."""


def save_encoder(tokenizer: Any, tokenizer_folder: Path, folder: Path) -> None:
    """Write what `open_encoder` reads.

    Args:
        tokenizer: Of transformers, as training loads it.
        tokenizer_folder: Where it was loaded from.
        folder: Where to write.
    """
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        (folder / BACKEND).write_text(json.dumps(state))
    facts = {
        "tokenizer_folder": str(tokenizer_folder),
        "is_fast": tokenizer.is_fast,
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
    }
    (folder / FACTS).write_text(json.dumps(facts))


def open_encoder(folder: Path) -> "Encoder":
    """Open what `save_encoder` wrote, once a process."""
    return _opened(folder, (folder / FACTS).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(folder: Path, _written_ns: int) -> "Encoder":
    return Encoder(folder)


class Encoder:
    """Text to token ids in one process and one thread: the workers are the parallelism."""

    def __init__(self, folder: Path) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.facts = json.loads((folder / FACTS).read_text())
        self._backend = self._open_backend(folder) if self.facts["is_fast"] else None

    def chat_text(self, messages: list[dict[str, str]]) -> str:
        """Put a conversation through the chat template."""
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))

    def encode(self, texts: list[str]) -> Encoded:
        """Tokenise documents and put the boundary tokens around each: bos text eos, neither twice."""
        ids, lengths = array("I"), []
        for document in self._encode_plain(texts):
            found = with_boundaries(document, self.facts["bos"], self.facts["eos"])
            ids.extend(found)
            lengths.append(len(found))
        return Encoded(np.frombuffer(ids, dtype=np.uint32), np.asarray(lengths, dtype=np.int64))

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        if self._backend is None:
            found: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return found
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @staticmethod
    def _open_backend(folder: Path) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / BACKEND))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.facts["tokenizer_folder"])


def with_boundaries(ids: Sequence[int], bos: int | None, eos: int | None) -> list[int]:
    """Put bos before and eos behind, unless there is none or a chat template has put it there."""
    front = [] if bos is None or (len(ids) and ids[0] == bos) else [bos]
    back = [] if eos is None or (len(ids) and ids[-1] == eos) else [eos]
    return [*front, *ids, *back]
