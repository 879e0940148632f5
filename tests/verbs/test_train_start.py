"""What a start reads: full blocks from the front of the data, nothing where nothing is calibrated."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lrc.config import Recipe
from lrc.data.blocks import Blocks, open_blocks
from lrc.errors import DataError
from lrc.models.teacher import load_tokenizer
from lrc.verbs.train import train
from lrc.verbs.train_start import CALIBRATION_BATCH, all_cores, calibration_batches
from tests.models.test_pair import make_pair
from tests.tiny import tiny_recipe, tiny_teacher


def blocks_of(recipe: Recipe) -> Blocks:
    tokenizer = load_tokenizer(Path(recipe.teacher))
    return open_blocks(recipe.data.train, tokenizer, sequence_length=recipe.data.sequence_length, vocab_size=48)


def test_calibration_takes_full_batches_of_the_asked_tokens(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, start__tokens=96)
    batches = calibration_batches(recipe, blocks_of(recipe))
    assert [batch.shape for batch in batches] == [(CALIBRATION_BATCH, 16)] * 3


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
