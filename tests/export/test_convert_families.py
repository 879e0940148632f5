"""Every promised family and every composite's text tower convert to a stock folder with equal logits."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from lrc.models.student import head_size
from lrc.models.tiny import random_model
from lrc.verbs.convert import convert
from lrc.verbs.train import train
from tests.models.composite_configs import COMPOSITES, random_composite
from tests.models.family_configs import FAMILY_CONFIGS
from tests.tiny import save_tokenizer, tiny_recipe, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor")
WIDTHS = {"hidden_size", "tie_word_embeddings", "head_dim", "transformers_version", "dtype"}
START = {"gemma4": "pca"}
"""Teachers that a calibrated start refuses: Gemma 4 calls its layers with two arguments by position."""
LEAKY = ("gpt_oss", "falcon_h1", "qwen3_5")
"""Teachers that can't keep documents apart; with masking they are refused (tests/models/test_isolation.py)."""


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_a_trained_student_converts_to_a_stock_folder_with_equal_logits(tmp_path: Path, family: str) -> None:
    random_model(FAMILY_CONFIGS[family]()).save_pretrained(tmp_path / "teacher")
    save_tokenizer(tmp_path / "teacher")
    write_rows(tmp_path / "train.jsonl")
    write_rows(tmp_path / "held_out.jsonl", rows=4, seed=1)
    recipe = tiny_recipe(
        tmp_path, train__max_steps=2, student={"hidden_size": 16}, data__document_masking=family not in LEAKY
    )
    out = convert(train(recipe), tmp_path / "out")
    parity = json.loads((out / "parity.json").read_text())
    assert parity["passed"] is True
    assert parity["in_memory"]["relative_difference"] < 1e-5
    assert parity["after_reload"]["relative_difference"] < 1e-5
    config, teacher = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "teacher"))
    assert {key for key in teacher if config.get(key) != teacher[key]} <= WIDTHS
    assert config["hidden_size"] == 16
    assert config["head_dim"] == head_size(FAMILY_CONFIGS[family]())


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_s_student_is_a_stock_causal_lm(tmp_path: Path, name: str) -> None:
    random_composite(name).save_pretrained(tmp_path / "teacher")
    save_tokenizer(tmp_path / "teacher")
    write_rows(tmp_path / "train.jsonl")
    write_rows(tmp_path / "held_out.jsonl", rows=4, seed=1)
    recipe = tiny_recipe(
        tmp_path,
        train__max_steps=2,
        student={"hidden_size": 16},
        start__method=START.get(name, "calibrated"),
        data__document_masking=name not in LEAKY,
    )
    out = convert(train(recipe), tmp_path / "out")
    parity = json.loads((out / "parity.json").read_text())
    assert parity["passed"] is True
    assert parity["after_reload"]["relative_difference"] < 1e-5
    config = json.loads((out / "config.json").read_text())
    assert config["hidden_size"] == 16
    assert config["architectures"] == [COMPOSITES[name][1]]
    student: Any = AutoModelForCausalLM.from_pretrained(out)
    assert type(student).__name__ == COMPOSITES[name][1]
    assert not any(parameter.isnan().any() for parameter in student.parameters())
