"""The config that is written says the same to transformers 5 and 4; shards and companions land whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from lrc.export.plain_folder import copy_companions, older_keys, write_config, write_shards
from tests.models.family_configs import FAMILY_CONFIGS, LLAMA3_ROPE
from tests.models.tiny_configs import tiny_config
from tests.tiny import tiny_teacher

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 77.0, "factor": 2.0}


def written(folder: Path, config: Any) -> dict[str, Any]:
    folder.mkdir()
    write_config(config, folder)
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 123.0}, LLAMA3_ROPE, YARN, LINEAR])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_older_keys_hold_the_values_of_the_newer(tmp_path: Path, family: str, rope: dict[str, Any]) -> None:
    config = tiny_config(family, rope_parameters=rope, dtype="bfloat16")
    values = written(tmp_path / "out", config)
    assert values["dtype"] == values["torch_dtype"] == "bfloat16"
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == rope["rope_theta"]
    scaled = {name: value for name, value in rope.items() if name != "rope_theta"}
    assert values["rope_scaling"] == (None if rope["rope_type"] == "default" else scaled)
    assert values["rope_parameters"] == rope


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 123.0}, LLAMA3_ROPE, YARN, LINEAR])
def test_a_reloaded_model_has_the_same_logits_and_config(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = tiny_teacher("qwen2", rope_parameters=rope)
    ids = torch.arange(40)[None] % 48
    model.save_pretrained(tmp_path)
    plain = AutoConfig.from_pretrained(tmp_path)
    write_config(model.config, tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(reloaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert reloaded.config.to_dict() == plain.to_dict()


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_no_familys_config_changes_by_the_older_keys(tmp_path: Path, family: str) -> None:
    config = FAMILY_CONFIGS[family]()
    config.save_pretrained(tmp_path / "plain")
    values = written(tmp_path / "out", config)
    plain = AutoConfig.from_pretrained(tmp_path / "plain").to_dict()
    found = AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    assert found["architectures"] == values["architectures"]
    for both in (plain, found):
        both.pop("_name_or_path")
        both.pop("architectures")
    if family == "phi3":  # transformers 4 reads the kind of Phi-3's scaling under another name
        found["rope_parameters"].pop("type", None)
    assert found == plain


def test_a_sliding_layer_with_its_own_base_is_told_as_gemma_3_did() -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    found = older_keys({"model_type": "gemma3_text", "rope_parameters": rope})
    assert found == {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert older_keys({"model_type": "gemma4_text", "rope_parameters": rope}) == {}


def test_the_class_that_serves_is_named(tmp_path: Path) -> None:
    config = tiny_config("qwen3")
    assert config.architectures is None
    assert written(tmp_path / "out", config)["architectures"] == ["Qwen3ForCausalLM"]


def test_a_field_with_a_shared_name_is_written_under_its_own_too(tmp_path: Path) -> None:
    values = written(tmp_path / "out", FAMILY_CONFIGS["qwen3_moe"]())
    assert values["num_experts"] == 4


def test_shards_hold_every_tensor_and_one_file_at_a_time_is_made(tmp_path: Path) -> None:
    shapes = {f"t{number}": torch.empty(8, 4, device="meta") for number in range(5)}
    made: list[str] = []

    def tensor_of(name: str) -> torch.Tensor:
        made.append(name)
        return torch.full((8, 4), float(name[1:]))

    write_shards(shapes, tmp_path, tensor_of, max_shard_bytes=300)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(made) == sorted(index) == sorted(shapes)
    assert len(set(index.values())) == 3
    for name, file_name in index.items():
        assert load_file(tmp_path / file_name)[name].eq(float(name[1:])).all()


def test_companions_and_terms_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    terms = ["LICENSE.txt", "NOTICE", "USE_POLICY.md"]
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors", "parity.json", "README.md", *terms):
        (source / name).write_text(name)
    copy_companions(source, out)
    assert sorted(path.name for path in out.iterdir()) == [*terms, "chat_template.jinja", "tokenizer.json"]


def test_a_stock_class_needs_no_code_and_another_one_gets_its_teachers(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    (source / "modeling_own.py").write_text("own")
    config = LlamaConfig(auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    write_config(config, out)
    copy_companions(source, out)
    values = json.loads((out / "config.json").read_text())
    assert "auto_map" not in values
    assert values["architectures"] == ["LlamaForCausalLM"]
    assert not (out / "modeling_own.py").exists()
    (out / "config.json").write_text(json.dumps(values | {"auto_map": config.auto_map}))
    copy_companions(source, out)
    assert (out / "modeling_own.py").read_text() == "own"
