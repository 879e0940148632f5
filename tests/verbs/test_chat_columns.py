"""Two answers: columns on a wide terminal, one after the other elsewhere."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from lrc.verbs import chat_columns
from lrc.verbs.chat_columns import side_by_side
from tests.tiny import save_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    save_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def answer(tokenizer: Any, streamer: Any, words: str) -> None:
    """Stream as generate does: the prompt first, then token by token."""
    ids = tokenizer(words, return_tensors="pt")["input_ids"][0]
    streamer.put(ids[:1][None])
    for token in ids:
        streamer.put(token[None])
    streamer.end()


def test_each_answer_stands_under_its_title_when_it_begins(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with side_by_side([tokenizer, tokenizer], ["student", "teacher"]) as streamers:
        answer(tokenizer, next(streamers), "w1 w2")
        assert capsys.readouterr().out == "student:\nw1 w2\n"
        answer(tokenizer, next(streamers), "w3 <eos>")
    assert capsys.readouterr().out == "teacher:\nw3\n"


@pytest.mark.parametrize(("width", "has_columns"), [(120, True), (100, True), (99, False)])
def test_columns_need_a_wide_terminal(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, has_columns: bool
) -> None:
    monkeypatch.setattr(chat_columns, "Console", lambda: Console(force_terminal=True, width=width))
    with side_by_side([tokenizer, tokenizer], ["student", "teacher"]) as streamers:
        first, second = (next(streamers) for _ in range(2))
        answer(tokenizer, first, "w1 w2")
        answer(tokenizer, second, "w3 w4")
    printed = capsys.readouterr().out
    last = printed.rsplit("teacher", 1)[-1]
    assert (any("w1 w2" in line and "w3 w4" in line for line in last.splitlines())) == has_columns
    assert ("student:" in printed) != has_columns
