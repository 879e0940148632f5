"""A teacher's tensors come under the stock model's names, whether its files use them or not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lrc.export.teacher_tensors import LoadedTensors, is_renamed, open_teacher
from lrc.models.folder import ModelTensors
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def saved(folder: Path, family: str) -> dict[str, torch.Tensor]:
    """Save a family's tiny model; return what the stock model holds, a tied head left out."""
    model = random_model(FAMILY_CONFIGS[family]())
    model.save_pretrained(folder)
    return dict(model.named_parameters())


def test_a_plain_family_is_read_from_its_files_tensor_by_tensor(tmp_path: Path) -> None:
    tensors = saved(tmp_path, "mistral")
    assert not is_renamed(tmp_path, list(tensors), EMBEDDING, HEAD)
    opened = open_teacher(tmp_path, renamed=False)
    assert isinstance(opened, ModelTensors)
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_a_family_whose_files_hold_single_experts_is_loaded_whole(tmp_path: Path, family: str) -> None:
    tensors = saved(tmp_path, family)
    stacked = next(name for name in tensors if name.endswith("experts.gate_up_proj"))
    assert stacked not in ModelTensors(tmp_path)
    assert is_renamed(tmp_path, list(tensors), EMBEDDING, HEAD)
    opened = open_teacher(tmp_path, renamed=True)
    assert isinstance(opened, LoadedTensors)
    assert stacked in opened
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in tensors.items())
    assert opened.dtype() == torch.float32


@pytest.mark.parametrize(("family", "renamed"), [("mistral", False), ("mixtral", True)])
def test_rows_are_those_of_the_whole_tensor(tmp_path: Path, family: str, renamed: bool) -> None:
    tensors = saved(tmp_path, family)
    opened = open_teacher(tmp_path, renamed=renamed)
    for name in (EMBEDDING, "model.norm.weight"):
        assert torch.equal(opened.rows(name, 3, 7), tensors[name][3:7])


def test_a_tied_head_may_lack_and_nothing_else(tmp_path: Path) -> None:
    tensors = saved(tmp_path, "smollm3")
    assert HEAD not in tensors
    names = [*tensors, HEAD]
    assert not is_renamed(tmp_path, names, EMBEDDING, HEAD)
    assert is_renamed(tmp_path, [*names, "model.layers.0.mlp.other"], EMBEDDING, HEAD)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({"elsewhere": stored.pop(EMBEDDING), **stored}, tmp_path / "model.safetensors")
    assert is_renamed(tmp_path, [HEAD], EMBEDDING, HEAD)


def test_the_stored_dtype_is_kept(tmp_path: Path) -> None:
    random_model(FAMILY_CONFIGS["mixtral"]()).to(torch.bfloat16).save_pretrained(tmp_path)
    opened = open_teacher(tmp_path, renamed=True)
    assert opened.dtype() == torch.bfloat16
    assert opened.read(EMBEDDING).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
