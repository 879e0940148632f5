"""Names of pre-tokenizers, read off tokenizers that are made here."""

import json
from pathlib import Path

import pytest

from lrc.export.pre_tokenizer import pre_tokenizer_name
from tests.export.bpe_student import save_bpe_tokenizer
from tests.tiny import save_tokenizer


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_known_splits_are_named(tmp_path: Path, name: str) -> None:
    save_bpe_tokenizer(tmp_path, split=name)
    assert pre_tokenizer_name(tmp_path) == name


def test_other_tokenizers_have_no_name(tmp_path: Path) -> None:
    assert pre_tokenizer_name(tmp_path) is None
    save_bpe_tokenizer(tmp_path, split="other")
    assert pre_tokenizer_name(tmp_path) is None
    save_tokenizer(tmp_path)  # whole words
    assert pre_tokenizer_name(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel", "use_regex": True}]},
        {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel", "use_regex": False}]},
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {"type": "ByteLevel", "use_regex": False},
        {"type": "Sequence", "pretokenizers": []},
        None,
    ],
)
def test_near_misses_have_no_name(tmp_path: Path, change: object) -> None:
    save_bpe_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": change}))
    assert pre_tokenizer_name(tmp_path) is None
