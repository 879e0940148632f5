"""Every promised family trains two steps and converts to a stock folder with equal logits and its teacher's config."""

import json
from pathlib import Path

import pytest

from lrc.models.tiny import random_model
from lrc.verbs.convert import convert
from lrc.verbs.train import train
from tests.models.family_configs import FAMILY_CONFIGS
from tests.tiny import save_tokenizer, tiny_recipe, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor")
WIDTHS = {"hidden_size", "tie_word_embeddings", "head_dim", "transformers_version", "dtype"}


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_a_trained_student_converts_to_a_stock_folder_with_equal_logits(tmp_path: Path, family: str) -> None:
    random_model(FAMILY_CONFIGS[family]()).save_pretrained(tmp_path / "teacher")
    save_tokenizer(tmp_path / "teacher")
    write_rows(tmp_path / "train.jsonl")
    write_rows(tmp_path / "held_out.jsonl", rows=4, seed=1)
    recipe = tiny_recipe(tmp_path, train__max_steps=2, student={"hidden_size": 16})
    out = convert(train(recipe), tmp_path / "out")
    parity = json.loads((out / "parity.json").read_text())
    assert parity["passed"] is True
    assert parity["in_memory"]["relative_difference"] < 1e-5
    assert parity["after_reload"]["relative_difference"] < 1e-5
    config, teacher = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "teacher"))
    assert {key for key in teacher if config.get(key) != teacher[key]} <= WIDTHS
    assert config["hidden_size"] == 16
