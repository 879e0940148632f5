"""Teachers with quantised weights or code of their own, from loading to the exported student."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from lrc.errors import ConfigError
from lrc.export.teacher_tensors import is_renamed
from lrc.models.discovery import discover
from lrc.models.stock import check_plain_or_restored, has_own_code, quantised_by, stock_model
from lrc.models.student import student_config
from lrc.models.teacher import load_config, load_model
from lrc.verbs.convert import convert
from lrc.verbs.train import train
from tests.models.composite_configs import COMPOSITES, random_composite
from tests.models.own_code import OWN_CONFIG, OWN_MODEL
from tests.tiny import tiny_recipe

BLOCK = 4
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
CPU = torch.device("cpu")


def quantise(folder: Path) -> dict[str, torch.Tensor]:
    """Store a folder's layers as fp8 with a scale a block, as DeepSeek-V3 does; returns what all stand for."""
    path = folder / "model.safetensors"
    stored, meant = load_file(path), {}
    for name, weight in list(stored.items()):
        if not name.endswith("_proj.weight"):
            meant[name] = weight
            continue
        out, inner = weight.shape
        blocks = weight.view(out // BLOCK, BLOCK, inner // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        meant[name] = (codes.float() * scale[:, None, :, None]).view(out, inner)
        stored[name], stored[f"{name}_scale_inv"] = codes.view(out, inner), scale
    save_file(stored, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": FP8}))
    return meant


def test_an_fp8_teacher_is_trained_and_exported_as_what_its_codes_stand_for(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"start__method": "random", "train__max_steps": 1}
    recipe = tiny_recipe(tmp_path, **changes)
    meant = quantise(tmp_path / "teacher")
    config = load_config(str(tmp_path / "teacher"))
    assert quantised_by(config) == "fp8"
    assert is_renamed(tmp_path / "teacher", list(meant), "model.embed_tokens.weight", "lm_head.weight")
    model = load_model(str(tmp_path / "teacher"), dtype=torch.float32, device=CPU)
    assert quantised_by(model.config) is None
    loaded = model.state_dict()
    for name, weight in meant.items():
        torch.testing.assert_close(loaded[name], weight, rtol=1e-6, atol=1e-7)
    out = convert(train(recipe), tmp_path / "out")
    assert json.loads((out / "parity.json").read_text())["passed"]
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    student = AutoModelForCausalLM.from_pretrained(out)
    assert {value.dtype for value in student.state_dict().values()} == {torch.float32}


def test_other_quantised_teachers_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=1)
    path = tmp_path / "teacher" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(ConfigError, match=r"plain weights, or fp8 or mxfp4, .* quantised by gptq"):
        train(recipe, dry_run=True)
    check_plain_or_restored(LlamaConfig(), "a plain one")


def test_a_composite_s_tower_is_quantised_as_the_whole_is(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, teacher=str(tmp_path / "composite"))
    config = COMPOSITES["llava"][0]()
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(recipe.teacher)  # no weights: they would be missed later
    tower = load_config(recipe.teacher)
    assert quantised_by(tower) == "gptq"
    assert quantised_by(student_config(tower, 16, tied=False)) is None
    with pytest.raises(ConfigError, match=r"plain weights, or fp8 or mxfp4, .* quantised by gptq"):
        check_plain_or_restored(tower, recipe.teacher)
    with pytest.raises(ConfigError, match=r"plain weights, or fp8 or mxfp4, .* quantised by gptq"):
        train(recipe, dry_run=True)


def test_an_fp8_composite_s_tower_is_plain_once_it_is_loaded(tmp_path: Path) -> None:
    random_composite("llava").save_pretrained(tmp_path)
    meant = quantise(tmp_path)
    assert quantised_by(load_config(str(tmp_path))) == "fp8"
    tower = load_model(str(tmp_path), dtype=torch.float32, device=CPU)
    assert quantised_by(tower.config) is None
    name = "layers.1.mlp.down_proj.weight"
    stored = next(key for key in meant if key.endswith(name))
    torch.testing.assert_close(tower.get_parameter(f"model.{name}"), meant[stored], rtol=1e-6, atol=1e-7)


def test_a_students_config_says_nothing_of_the_teachers_format() -> None:
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, quantization_config=FP8)
    assert getattr(student_config(config, 16, tied=False), "quantization_config", None) is None
    assert config.quantization_config


def test_a_teachers_own_code_is_used_where_it_was_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    tiny_recipe(tmp_path)
    teacher = tmp_path / "teacher"
    (teacher / "configuration_own.py").write_text(OWN_CONFIG)
    (teacher / "modeling_own.py").write_text(OWN_MODEL)
    values = json.loads((teacher / "config.json").read_text())
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (teacher / "config.json").write_text(json.dumps(values | {"model_type": "own_of_the_test", "auto_map": own}))
    with pytest.raises(ConfigError, match="trust_remote_code"):
        load_config(str(teacher))
    config = load_config(str(teacher), trust_remote_code=True)
    assert has_own_code(config)
    assert not has_own_code(LlamaConfig())
    with torch.device("meta"):
        assert type(stock_model(config)).__name__ == "OwnForCausalLM"
    assert discover(config).num_layers == 2
    assert student_config(config, 16, tied=False).hidden_size == 16
