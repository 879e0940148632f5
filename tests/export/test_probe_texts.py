"""The texts of the probe are long enough for a window, in English of different kinds, and none stands twice."""

from pathlib import Path

from lrc.export.probe import WINDOW_TOKENS
from lrc.export.probe_texts import ODD_TEXT, TEXTS
from lrc.models.teacher import load_tokenizer
from tests.export.bpe_student import bpe_student


def test_every_text_fills_a_window_even_at_five_characters_a_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bpe_student(tmp_path))
    for text in TEXTS:
        assert len(text) >= 5 * WINDOW_TOKENS
        assert len(tokenizer.encode(text, add_special_tokens=False)) >= WINDOW_TOKENS


def test_no_text_begins_like_another() -> None:
    assert len({text[:40] for text in TEXTS}) == len(TEXTS) == 6


def test_the_odd_text_has_what_tokenizers_split_unlike_each_other() -> None:
    assert ODD_TEXT.startswith("  ")
    assert ODD_TEXT.endswith("\n")
    assert "\t" in ODD_TEXT
    assert {ord(character) // 0x400 for character in ODD_TEXT} >= {0, 1, 0x4F60 // 0x400}
