"""The identity of a tokenizer: what changes its ids changes the hash, what doesn't leaves it."""

from pathlib import Path

from transformers import AutoTokenizer

from lrc.data.tokenizer_hash import tokenizer_sha256
from tests.tiny import teacher_folder


def test_the_hash_follows_the_vocabulary_and_not_the_calls(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    tokenizer, same = (AutoTokenizer.from_pretrained(folder) for _ in range(2))
    before = tokenizer_sha256(tokenizer)
    same("w1 w2 w3", truncation=True, max_length=2)
    assert tokenizer_sha256(same) == before
    tokenizer.add_tokens(["another"])
    assert tokenizer_sha256(tokenizer) != before
