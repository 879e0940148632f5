"""A tokenizer as the workers of `lrc prepare` use it: its fast backend and boundary tokens, saved with the shards.

Workers open it without importing transformers, which takes longer than tokenising ten megabytes; only chat templates
and slow tokenizers need that.
"""

import json
import os
from array import array
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrc.data.chat_date import dated
from lrc.data.whole_file import write_if_changed

FACTS = "encoder.json"
BACKEND = "encoder_backend.json"
TEMPLATE_DATE = (2024, 7, 26)
"""What chat templates that ask for today's date are told, so that no shard depends on the day that it was made on: the
date that Llama's own templates name where there is no clock."""
BLANK_TAIL = 8
"""Tokens behind an end token that are looked at; a template writes a line break or two there."""


class Encoded(NamedTuple):
    """Documents end to end, each with its boundary tokens."""

    ids: np.ndarray
    """`[tokens]` uint32."""
    lengths: np.ndarray
    """Tokens of each document, `[documents]` int64."""


def save_encoder(tokenizer: Any, tokenizer_folder: Path, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Write what `open_encoder` reads.

    Args:
        tokenizer: Of transformers, as training loads it.
        tokenizer_folder: Where it was loaded from.
        folder: Where to write.
        trust_remote_code: Run code that came with the tokenizer, also in workers.
    """
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        write_if_changed(folder / BACKEND, json.dumps(state).encode())
    facts = {
        "tokenizer_folder": str(tokenizer_folder.absolute()),  # a worker may run in another folder
        "trust_remote_code": trust_remote_code,
        "is_fast": tokenizer.is_fast,
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
    }
    write_if_changed(folder / FACTS, json.dumps(facts).encode())


def open_encoder(folder: Path) -> "Encoder":
    """Open what `save_encoder` wrote, once a process."""
    written_ns = [path.stat().st_mtime_ns for name in (FACTS, BACKEND) if (path := folder / name).is_file()]
    return _opened(folder, tuple(written_ns))


@lru_cache(maxsize=1)
def _opened(folder: Path, _written_ns: tuple[int, ...]) -> "Encoder":
    return Encoder(folder)


class Encoder:
    """Text to token ids in one process and one thread: the workers are the parallelism."""

    def __init__(self, folder: Path) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.facts = json.loads((folder / FACTS).read_text())
        self._backend = self._open_backend(folder) if self.facts["is_fast"] else None

    def chat_text(self, messages: list[dict[str, str]]) -> str:
        """Put a conversation through the chat template, whose clock stands at `TEMPLATE_DATE`."""
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, chat_template=self._template))

    def encode(self, texts: list[str]) -> Encoded:
        """Tokenise documents and put the boundary tokens around each: bos text eos, neither twice."""
        ids, lengths = array("I"), []
        for document in self._encode_plain(texts):
            found = with_boundaries(document, self.facts["bos"], self.facts["eos"], decode=self._decode)
            ids.extend(found)
            lengths.append(len(found))
        return Encoded(np.frombuffer(ids, dtype=np.uint32), np.asarray(lengths, dtype=np.int64))

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        if self._backend is None:
            found: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return found
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @cached_property
    def _template(self) -> str:
        return dated(self._tokenizer.get_chat_template(), datetime(*TEMPLATE_DATE))

    def _decode(self, ids: Sequence[int]) -> str:
        return str((self._backend or self._tokenizer).decode(list(ids), skip_special_tokens=False))

    @staticmethod
    def _open_backend(folder: Path) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / BACKEND))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        trust = self.facts["trust_remote_code"]
        return AutoTokenizer.from_pretrained(self.facts["tokenizer_folder"], trust_remote_code=trust)


def with_boundaries(
    ids: Sequence[int], bos: int | None, eos: int | None, *, decode: Callable[[Sequence[int]], str] | None = None
) -> list[int]:
    """Put bos before and eos behind, unless there is none or a chat template has put it there.

    Args:
        ids: A document.
        bos: The begin token, if there is one.
        eos: The end token, if there is one.
        decode: Gives the text of ids; with it, an end token that only white space follows (ChatML) ends a document too.
    """
    front = [] if bos is None or (len(ids) and ids[0] == bos) else [bos]
    back = [] if eos is None or _is_ended(ids, eos, decode) else [eos]
    return [*front, *ids, *back]


def _is_ended(ids: Sequence[int], eos: int, decode: Callable[[Sequence[int]], str] | None) -> bool:
    for length in range(min(len(ids), BLANK_TAIL + 1)):
        if ids[len(ids) - 1 - length] == eos:
            return length == 0 or (decode is not None and not decode(ids[len(ids) - length :]).strip())
    return False
