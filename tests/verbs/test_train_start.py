"""What a start reads: full blocks from the front of the data, nothing where nothing is calibrated."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrc.config import Recipe
from lrc.data.block import Block
from lrc.data.blocks import Blocks, open_blocks, ordered_batches
from lrc.errors import DataError
from lrc.models.teacher import load_tokenizer
from lrc.verbs.train import train
from lrc.verbs.train_start import CALIBRATION_BATCH, SEARCHED, all_cores, calibration_batches
from tests.models.test_pair import make_pair
from tests.tiny import tiny_recipe, tiny_teacher


def blocks_of(recipe: Recipe) -> Blocks:
    tokenizer = load_tokenizer(Path(recipe.teacher))
    return open_blocks(recipe.data.train, tokenizer, sequence_length=recipe.data.sequence_length, vocab_size=48)


def test_calibration_takes_full_batches_of_the_asked_tokens(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, start__tokens=96)
    batches = calibration_batches(recipe, blocks_of(recipe))
    assert [batch.shape for batch in batches] == [(CALIBRATION_BATCH, 16)] * 3


class Sized:
    """Blocks of given lengths, each filled with its number; counts what is read."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, index: int) -> Block:
        self.num_read += 1
        return Block(np.full(self.lengths[index], index), "general")

    def where(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize("tokens", [96, 100, 112, 113])
def test_full_rows_are_taken_as_they_lie(tmp_path: Path, tokens: int, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path, start__tokens=tokens)
    capsys.readouterr()  # the teacher's folder is written
    batches = calibration_batches(recipe, Sized(*[16] * 20))
    plain = [batch.input_ids for batch in ordered_batches(Sized(*[16] * 20), tokens=tokens, batch_size=2)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batches, plain, strict=False))
    assert len(batches) == tokens // 16 // 2 + (tokens == 113)
    assert capsys.readouterr().err == ""


def test_short_rows_are_passed_over_until_there_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks, recipe = Sized(16, 9, 16, 16, 1, 16, 16, 16), tiny_recipe(tmp_path, start__tokens=64)
    capsys.readouterr()
    batches = calibration_batches(recipe, blocks)
    assert [batch[:, 0].tolist() for batch in batches] == [[0, 2], [3, 5]]
    assert blocks.num_read == 6
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_fewer_tokens_than_asked_for_are_told_once(
    tmp_path: Path, rank: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    recipe = tiny_recipe(tmp_path, start__tokens=64)
    capsys.readouterr()
    assert len(calibration_batches(recipe, Sized(16, 9, 16, 16))) == 1
    said = (
        "start: 32 calibration tokens, fewer than start.tokens = 64: the first 57 tokens of "
        f"{tmp_path / 'train.jsonl'} have no more rows of data.sequence_length = 16\n"
    )
    assert capsys.readouterr().err == (said if rank == "0" else "")


def test_the_search_for_full_rows_ends(tmp_path: Path) -> None:
    blocks = Sized(*[8] * 1000, 16, 16)
    with pytest.raises(DataError, match=r"needs 2 rows of .* but the first 512 tokens of .* have 0"):
        calibration_batches(tiny_recipe(tmp_path, start__tokens=64), blocks)
    assert blocks.num_read == SEARCHED * 64 // 8


@pytest.mark.parametrize("changes", [{"start__method": "random"}, {"method": "only_kd"}])
def test_nothing_is_read_where_nothing_is_calibrated(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = tiny_recipe(tmp_path, **{"start__tokens": 1, **changes})
    assert calibration_batches(recipe, blocks_of(recipe)) == []


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, start__tokens=31)
    with pytest.raises(DataError, match="at least 2 rows"):
        calibration_batches(recipe, blocks_of(recipe))


def test_a_start_from_scratch_is_measured_and_written_down(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, method="only_kd", train__max_steps=1)
    train(recipe)
    start = json.loads((tmp_path / "run" / "train" / "start.json").read_text())
    assert (start["method"], start["calibration_tokens"]) == ("scratch", 0)
    assert start["held_out"]["kl"] > 0
    assert len(start["effective_rank"]) == 2


@pytest.mark.parametrize(("launched", "has_gpu"), [("1", True), ("8", False), ("8", True)])
def test_a_start_on_the_cpu_beside_gpus_uses_every_core(
    launched: str, has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, cores, before = make_pair(tiny_teacher("llama"), 16), os.sched_getaffinity(0), torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setenv("WORLD_SIZE", launched)
    try:
        torch.set_num_threads(1)
        with all_cores(pair):
            found = torch.get_num_threads()
        assert found == (len(cores) if has_gpu and launched == "8" else 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
