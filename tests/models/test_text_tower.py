"""A composite's text tower computes on text what the whole model does, or is refused for a reason that holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, GlmOcrConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from lrc.errors import CheckpointError, ConfigError
from lrc.models import text_tower
from lrc.models.discovery import discover
from lrc.models.oracles import run_oracles
from lrc.models.teacher import load_config, load_model, read_config
from lrc.models.text_tower import cut_tower, holds_a_head, is_composite, tower_config
from tests.models.composite_configs import COMPOSITES, random_composite, save_with_own_head
from tests.models.family_configs import FAMILY_CONFIGS

CPU = torch.device("cpu")
IDS = torch.randint(3, 47, (2, 9), generator=torch.Generator().manual_seed(5))
each_composite = pytest.mark.parametrize("name", COMPOSITES)


@each_composite
def test_the_tower_s_logits_are_the_whole_model_s_on_text(name: str, tmp_path: Path) -> None:
    whole = random_composite(name)
    whole.save_pretrained(tmp_path)
    tower = load_model(str(tmp_path), dtype=torch.float32, device=CPU)
    assert type(tower).__name__ == COMPOSITES[name][1]
    with torch.no_grad():
        torch.testing.assert_close(tower(IDS).logits, whole(input_ids=IDS).logits, atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(tensor.is_meta for tensor in [*tower.parameters(), *tower.buffers()])


@each_composite
def test_a_tower_passes_every_oracle_and_is_discovered_from_the_config_alone(name: str, tmp_path: Path) -> None:
    random_composite(name).save_pretrained(tmp_path)
    tower = load_model(str(tmp_path), dtype=torch.float32, device=CPU)
    assert discover(load_config(str(tmp_path))) == discover(tower.config)
    results = run_oracles(tower)
    assert all(result.passed for result in results), [result for result in results if not result.passed]


@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_a_tower_comes_in_the_dtype_that_is_asked_for(name: str, tmp_path: Path) -> None:
    random_composite(name).save_pretrained(tmp_path)
    tower = load_model(str(tmp_path), dtype=torch.bfloat16, device=CPU)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
    assert tower.config.dtype == torch.bfloat16


def test_a_composite_that_lists_its_end_tokens_is_loaded(tmp_path: Path) -> None:
    random_composite("gemma3", eos_token_id=[1, 2]).save_pretrained(tmp_path)  # as Gemma 3's instruct models
    whole = read_config(str(tmp_path))
    assert whole.eos_token_id == [1, 2]
    tower = load_model(str(tmp_path), dtype=torch.float32, device=CPU)
    assert type(tower).__name__ == "Gemma3ForCausalLM"


def test_buffers_that_are_not_stored_are_as_exact_as_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    whole = random_composite("gemma3").to(torch.bfloat16)
    whole.config.text_config.dtype = torch.bfloat16
    whole.save_pretrained(tmp_path)
    stored = load_config(str(tmp_path))
    assert stored.dtype == torch.bfloat16
    tower: Any = load_model(str(tmp_path), dtype=torch.float32, device=CPU)
    scale = tower.model.embed_tokens.embed_scale
    assert torch.equal(scale, torch.tensor(32**0.5))  # 5.65625 in bfloat16
    assert tower.config.dtype == torch.float32
    cut_tower(random_composite("gemma3"), stored)
    assert stored.dtype == torch.bfloat16


def test_a_head_in_the_files_is_the_tower_s_own_whatever_a_default_says(tmp_path: Path) -> None:
    whole = save_with_own_head(tmp_path)
    assert read_config(str(tmp_path)).tie_word_embeddings is True
    tower = load_model(str(tmp_path), dtype=torch.float32, device=CPU)
    assert load_config(str(tmp_path)).tie_word_embeddings is tower.config.tie_word_embeddings is False
    assert torch.equal(tower.get_output_embeddings().weight, whole.get_output_embeddings().weight)


class FakeHub:
    """Holds an index of one model and nothing else."""

    def read_text(self, path: str) -> str:
        if path != "owner/name/model.safetensors.index.json":
            raise FileNotFoundError(path)
        return '{"weight_map": {"language_model.lm_head.weight": "model-00001-of-00002.safetensors"}}'


def test_of_a_hub_id_the_index_tells_whether_there_is_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tower, "HfFileSystem", FakeHub)
    config = COMPOSITES["mistral3"][0]()
    assert config.tie_word_embeddings is True
    assert tower_config(config, "owner/name").tie_word_embeddings is False
    assert tower_config(config, "owner/in_one_file").tie_word_embeddings is True
    assert holds_a_head("owner/name") is True
    assert holds_a_head("owner/in_one_file") is None


def test_a_head_that_can_t_be_looked_for_is_neither_there_nor_not(tmp_path: Path) -> None:
    assert holds_a_head("owner/name") is None  # no network
    COMPOSITES["mistral3"][0]().save_pretrained(tmp_path)
    assert holds_a_head(str(tmp_path)) is None


def test_a_plain_model_s_config_is_no_composite() -> None:
    assert not any(is_composite(make()) for make in FAMILY_CONFIGS.values())


def test_a_tower_without_a_causal_class_is_refused_by_name(tmp_path: Path) -> None:
    config = GlmOcrConfig()
    config.save_pretrained(tmp_path)
    assert config.text_config.model_type not in CAUSAL
    with pytest.raises(ConfigError, match=r"^glm_ocr can't be cloned: its text tower is of the type glm_ocr_text, for"):
        load_config(str(tmp_path))


def test_a_tower_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    whole = random_composite("llava")
    config = tower_config(whole.config, str(tmp_path))
    config.rms_norm_eps = 1.0
    with pytest.raises(ConfigError, match=r"^llava can't be cloned: on text alone its logits are not those of"):
        cut_tower(whole, config)


def test_a_tower_with_other_tensors_is_refused(tmp_path: Path) -> None:
    whole = random_composite("llava")
    config = tower_config(whole.config, str(tmp_path))
    config.num_hidden_layers = 1
    with pytest.raises(ConfigError, match="llava can't be cloned: its decoder has other tensors than LlamaForCausalLM"):
        cut_tower(whole, config)


def test_a_composite_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    whole = random_composite("llava")
    state = {name: tensor for name, tensor in whole.state_dict().items() if "layers.1.mlp.down_proj" not in name}
    whole.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match="are missing, for example"):
        load_model(str(tmp_path), dtype=torch.float32, device=CPU)


def test_the_composite_s_config_stays_as_it_was(tmp_path: Path) -> None:
    config = COMPOSITES["qwen3_vl"][0]()
    before = config.to_dict()
    tower = tower_config(config, str(tmp_path))
    assert config.to_dict() == before
    assert type(tower) is type(AutoConfig.for_model("qwen3"))
    assert tower.architectures == ["Qwen3ForCausalLM"]
    assert tower.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
