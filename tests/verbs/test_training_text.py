"""What training reads: opened with progress by the first process, held-out text in windows."""

from pathlib import Path

import pytest
import torch

from lrc.data import blocks as module
from lrc.data_config import DataConfig
from lrc.verbs.training_text import held_out_windows, open_text
from tests.data.letters import VOCABULARY, Letters, write


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_says_how_far_much_text_is(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", *['{"text": "abcdef"}'] * 20)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    open_text(path, Letters(), sequence_length=4, vocab_size=VOCABULARY)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "INDEXED_BYTES", 1)
    open_text(path, Letters(), sequence_length=4, vocab_size=VOCABULARY)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (10 if rank == 0 else 0)
    assert all(line.startswith("tokenise ") and "/20 rows" in line and "ETA" in line for line in said)


def test_held_out_text_comes_in_windows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *['{"text": "abcdef"}'] * 4)  # 32 tokens
    settings = DataConfig(train="nothing", held_out=path, sequence_length=4, held_out_tokens=8)
    windows = held_out_windows(settings, Letters(), vocab_size=VOCABULARY)
    assert [inputs.tolist() for inputs, _ in windows] == [[[90, 0, 1, 2]], [[3, 4, 5, 91]]]
    assert all(inputs.dtype == labels.dtype == torch.long for inputs, labels in windows)
    assert held_out_windows(DataConfig(train="nothing"), Letters(), vocab_size=VOCABULARY) == []
