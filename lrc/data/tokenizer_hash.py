"""The identity of a tokenizer, recorded with the data that it made."""

import hashlib
import json
from typing import Any


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash what decides a text's token ids: the fast tokenizer's whole state, or a slow one's vocabulary."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("truncation", None)  # settings of a call, not of the tokenizer
        state.pop("padding", None)
    else:
        state = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
