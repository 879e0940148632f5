"""Which of llama.cpp's pre-tokenizers splits text as a Hugging Face tokenizer does.

A GGUF file names its pre-tokenizer. llama.cpp's converter knows published tokenizers by a hash of their ids; for any
other this module reads the name off `tokenizer.json`. A wrong name would only show in odd text, so the export asks
llama.cpp itself to tokenise a probe text (`lrc/export/gguf_parity.py`).
"""

import json
from pathlib import Path
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
_BY_PATTERN = {
    _CONTRACTIONS + "\\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + "\\p{N}" + _REST: "qwen2",
}


def pre_tokenizer_name(folder: Path) -> str | None:
    """Return llama.cpp's name of a byte-level BPE tokenizer's pre-tokenizer, or None if none of the known fits.

    Known are those of GPT-2 (`gpt-2`), SmolLM (`smollm`), Llama 3 (`llama-bpe`) and Qwen 2 (`qwen2`).

    Args:
        folder: Model folder with a `tokenizer.json`.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if tokenizer["model"].get("type", "BPE") != "BPE":
        return None
    outer = tokenizer.get("pre_tokenizer") or {}
    steps = outer["pretokenizers"] if outer.get("type") == "Sequence" else [outer]
    return _name_of(steps) if steps else None


def _name_of(steps: list[dict[str, Any]]) -> str | None:
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if last.get("use_regex", True):
        if not before:
            return "gpt-2"
        digits = [{"type": "Digits", "individual_digits": True}]
        return "smollm" if before == digits else None
    if len(before) != 1 or before[0].get("type") != "Split":
        return None
    split = before[0]
    if split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    return _BY_PATTERN.get(split["pattern"].get("Regex", ""))
