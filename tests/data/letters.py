"""A tokenizer of one token a letter, and files of rows to open with it."""

from pathlib import Path
from typing import Any

from lrc.data.blocks import open_blocks

VOCABULARY = 100


class Letters:
    """A tokenizer with one token a letter, its place in the alphabet."""

    def __init__(self, bos_token_id: int | None = 90, eos_token_id: int | None = 91) -> None:
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        assert not verbose
        return {"input_ids": [ord(letter) - ord("a") for letter in text]}


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def open_letters(path: str, *, sequence_length: int = 4, tokenizer: Any = None) -> Any:
    return open_blocks(path, tokenizer, sequence_length=sequence_length, vocab_size=VOCABULARY)
