"""The parity check of a re-expressed student passes what is right, and lets nothing wrong be published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrc.errors import NumericsError
from lrc.export.as_llama import LlamaPlan, llama_plan, write_llama
from lrc.export.llama_parity import check_llama_parity
from lrc.models.folder import ModelTensors
from tests.tiny import save_tokenizer, teacher_folder, tiny_teacher


def written(root: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[LlamaPlan, Path]:
    out = root / "out"
    out.mkdir()
    student = teacher_folder(root / "student", "qwen2", **changes)
    if dtype != torch.float32:
        tiny_teacher("qwen2", **changes).to(dtype).save_pretrained(student)  # type: ignore[operator]
    plan = llama_plan(str(student))
    write_llama(plan, out, max_shard_bytes=10**9)
    return plan, out


def test_a_right_export_passes_with_no_difference_at_all(tmp_path: Path) -> None:
    facts = check_llama_parity(*written(tmp_path))
    assert facts["passed"] is True
    assert facts["after_reload"] == {"max_abs_difference": 0, "relative_difference": 0}
    assert facts["rounding"] == 0


def test_a_padded_export_passes_within_float32(tmp_path: Path) -> None:
    facts = check_llama_parity(*written(tmp_path, hidden_size=30))
    assert 0 < facts["after_reload"]["relative_difference"] < 1e-5
    assert facts["rounding"] < 1e-5


def test_padding_in_bfloat16_costs_the_rounding_of_the_gains_and_no_more(tmp_path: Path) -> None:
    student, out = tmp_path / "student", tmp_path / "out"
    tiny_teacher("qwen2", hidden_size=30).to(torch.bfloat16).save_pretrained(student)  # type: ignore[operator]
    save_tokenizer(student)
    out.mkdir()
    plan = llama_plan(str(student))
    write_llama(plan, out, max_shard_bytes=10**9)
    facts = check_llama_parity(plan, out)
    assert ModelTensors(out).dtype() == torch.bfloat16
    assert facts["after_reload"]["relative_difference"] < 1e-5 < facts["rounding"] < 0.01


@pytest.mark.parametrize(
    ("hidden_size", "name"),
    [
        (32, "model.norm.weight"),
        (32, "model.layers.0.self_attn.v_proj.bias"),
        (32, "model.layers.1.self_attn.o_proj.bias"),
        (30, "model.layers.1.self_attn.o_proj.bias"),
        (30, "model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_wrong_tensor_is_not_published(tmp_path: Path, name: str, hidden_size: int) -> None:
    plan, out = written(tmp_path, hidden_size=hidden_size)
    tensors = load_file(out / "model.safetensors")
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="Nothing was published"):
        check_llama_parity(plan, out)


def test_logits_that_are_no_numbers_are_not_published(tmp_path: Path) -> None:
    plan, out = written(tmp_path)
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0] = torch.nan
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="found nan"):
        check_llama_parity(plan, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unscaled_gains_are_not_published(tmp_path: Path, dtype: torch.dtype) -> None:
    plan, out = written(tmp_path, dtype=dtype, hidden_size=30)
    tensors = load_file(out / "model.safetensors")
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = tensors[name] / plan.gain_scale
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="rounding of the scaled gains"):
        check_llama_parity(plan, out)


def test_a_wrong_config_is_not_published(tmp_path: Path) -> None:
    plan, out = written(tmp_path)
    values = json.loads((out / "config.json").read_text())
    values["rope_parameters"]["rope_theta"] = values["rope_theta"] = 99.0
    (out / "config.json").write_text(json.dumps(values))
    with pytest.raises(NumericsError, match="Nothing was published"):
        check_llama_parity(plan, out)


def test_one_gain_that_is_a_step_of_its_dtype_off_is_not_published(tmp_path: Path) -> None:
    plan, out = written(tmp_path, dtype=torch.bfloat16, hidden_size=30)
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][3] *= 1 + 2**-7
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match=r"layers\.1\.input_layernorm.* gain times 0\.968.* to bfloat16 alone"):
        check_llama_parity(plan, out)
