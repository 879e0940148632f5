"""`lrc sft` of a mixture of experts: the documented loss and no other, and LoRA says what it leaves as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GraniteMoeConfig, Qwen3MoeConfig

from lrc.config import load_recipe
from lrc.verbs.sft import sft
from tests.sft.tiny_chats import VOCABULARY, sft_root

# peft warns of families of experts and of other versions' names
peft_warns = pytest.mark.filterwarnings("ignore")
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
HEADS: dict[str, Any] = {
    "num_attention_heads": 2,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "moe_intermediate_size": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
MARKS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def run(root: Path, name: str, config: Any, *overrides: str) -> tuple[Path, Path]:
    """Fine-tune a student of experts for some steps; returns it as it was, and the result."""
    student = root / name
    student.mkdir()
    for file in (root / "student").iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            (student / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(student)
    chosen = (f"sft.model={student}", f"run={root / f'run_{name}'}", "sft.max_steps=4", *overrides)
    return student, sft(load_recipe(root / "recipe.yaml", chosen))


def qwen(**changes: Any) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(**SIZES, **HEADS, **EXPERTS, **MARKS, **changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return sft_root(tmp_path)


def test_the_students_balancing_loss_is_not_trained(root: Path) -> None:
    students = {"none": qwen(router_aux_loss_coef=0.0), "large": qwen(router_aux_loss_coef=50.0)}
    outs = {name: run(root, name, config)[1] for name, config in students.items()}
    one, other = (load_file(out / "model.safetensors") for out in outs.values())
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((outs["large"] / "config.json").read_text())["router_aux_loss_coef"] == 50.0


@peft_warns
@pytest.mark.parametrize("is_reached", [True, False])
def test_lora_trains_the_experts_or_says_that_it_does_not(
    root: Path, capsys: pytest.CaptureFixture[str], is_reached: bool
) -> None:
    config = qwen() if is_reached else GraniteMoeConfig(**SIZES, **HEADS, **EXPERTS, **MARKS)
    student, out = run(root, "experts", config, "sft.lora_rank=2")
    before, after = load_file(student / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    kinds = ("experts", "input_linear", "output_linear")
    changed = {any(kind in name for kind in kinds) for name in after if not torch.equal(before[name], after[name])}
    assert changed == ({True, False} if is_reached else {False})
    said = capsys.readouterr().err
    assert ("note: LoRA leaves these as they are" in said) is not is_reached
    assert ("model.layers.N.block_sparse_moe.experts.gate_up_proj" in said) is not is_reached
