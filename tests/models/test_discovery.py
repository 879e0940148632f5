"""Discovery finds every tensor of five families exactly once, in its role, and refuses what it can't tell."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    OPTConfig,
    T5Config,
)

from lrc.clone.sites import Stage
from lrc.errors import ConfigError
from lrc.models.discovery import Architecture, discover
from lrc.models.oracles import run_oracles
from lrc.models.student import student_config
from lrc.models.tiny import random_model
from tests.models.tiny_configs import FAMILIES, SIZES, tiny_config

each_family = pytest.mark.parametrize("family", FAMILIES)
each_tying = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])

LAYERS = range(SIZES["num_hidden_layers"])
READERS = [f"{name}_proj" for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")]
WRITERS = ["self_attn.o_proj", "mlp.down_proj"]
NORMS = {
    "gemma3_text": [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ]
}
INHERITED = {
    "qwen2": ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
    "qwen3": ["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
    "gemma3_text": ["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
}


def meta_model(config: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def in_layers(*names: str) -> set[str]:
    return {f"model.layers.{layer}.{name}" for layer in LAYERS for name in names}


def roles(found: Architecture) -> dict[str, tuple[str, int]]:
    return {name: (entry.role, entry.axis) for name, entry in found.projected.items()}


@each_family
@each_tying
def test_every_tensor_is_found_exactly_once(family: str, tied: bool) -> None:
    config = tiny_config(family, tie_word_embeddings=tied)
    found = discover(config)
    listed = [*found.projected, *found.gains, *found.inherited]
    assert len(set(listed)) == len(listed)
    parameters = {name for name, _ in meta_model(config).named_parameters(remove_duplicate=False)}
    assert set(listed) == parameters
    assert all(name == entry.name for name, entry in found.projected.items())


@each_family
@each_tying
def test_readers_writers_gains_and_inherited_tensors_are_the_known_ones(family: str, tied: bool) -> None:
    found = discover(tiny_config(family, tie_word_embeddings=tied))
    embedding_and_head = {"model.embed_tokens.weight", "lm_head.weight"}
    readers = embedding_and_head | in_layers(*(f"{name}.weight" for name in READERS))
    writers = in_layers(*(f"{name}.weight" for name in WRITERS))
    assert roles(found) == dict.fromkeys(readers, ("reader", 1)) | dict.fromkeys(writers, ("writer", 0))
    norms = NORMS.get(family, ["input_layernorm", "post_attention_layernorm"])
    assert set(found.gains) == {"model.norm.weight"} | in_layers(*(f"{name}.weight" for name in norms))
    assert set(found.inherited) == in_layers(*INHERITED.get(family, []))


@each_family
@each_tying
def test_the_frame_around_the_layers_is_found(family: str, tied: bool) -> None:
    found = discover(tiny_config(family, tie_word_embeddings=tied))
    assert (found.model_type, found.hidden_size, found.num_layers) == (family, 32, 2)
    assert (found.embedding, found.head, found.is_tied) == ("model.embed_tokens.weight", "lm_head.weight", tied)
    assert (found.base, found.layers, found.norm) == ("model", "model.layers", "model.norm")


@each_family
@each_tying
def test_each_layer_has_its_attention_and_ffn_stage_with_their_norms(family: str, tied: bool) -> None:
    is_gemma = family == "gemma3_text"
    attention = Stage(
        kind="attn",
        readers=tuple(READERS[:3]),
        writers=("self_attn.o_proj",),
        norm="input_layernorm",
        post_norm="post_attention_layernorm" if is_gemma else None,
    )
    ffn = Stage(
        kind="mlp",
        readers=tuple(READERS[3:]),
        writers=("mlp.down_proj",),
        norm="pre_feedforward_layernorm" if is_gemma else "post_attention_layernorm",
        post_norm="post_feedforward_layernorm" if is_gemma else None,
    )
    assert discover(tiny_config(family, tie_word_embeddings=tied)).stages == ((attention, ffn),) * 2


@pytest.mark.parametrize("num_layers", [1, 5])
def test_any_number_of_layers_is_walked(num_layers: int) -> None:
    found = discover(tiny_config("llama", num_hidden_layers=num_layers))
    assert found.num_layers == len(found.stages) == num_layers
    assert len(set(found.stages)) == 1


def test_a_writer_s_bias_is_projected_and_a_reader_s_inherited() -> None:
    found = discover(tiny_config("llama", attention_bias=True, mlp_bias=True))
    biases = {name: role for name, role in roles(found).items() if name.endswith(".bias")}
    assert biases == dict.fromkeys(in_layers(*(f"{name}.bias" for name in WRITERS)), ("writer", 0))
    assert set(found.inherited) == in_layers(*(f"{name}.bias" for name in READERS))
    assert found.stages == discover(tiny_config("llama")).stages


@each_family
def test_the_config_s_dtype_and_sliding_window_change_nothing(family: str) -> None:
    changes = {} if family == "llama" else {"sliding_window": 2}
    narrow = discover(tiny_config(family, dtype="bfloat16", **changes))
    assert narrow == discover(tiny_config(family))


def test_a_config_without_an_explicit_head_size_keeps_its_heads() -> None:
    config = tiny_config("qwen2", head_dim=None)
    assert getattr(config, "head_dim", None) is None
    assert roles(discover(config)) == roles(discover(tiny_config("qwen2")))


@each_family
def test_discovery_leaves_the_config_as_it_was(family: str) -> None:
    config = tiny_config(family)
    before = copy.deepcopy(config.to_dict())
    discover(config)
    assert config.to_dict() == before


TIED_TO_HEADS = {
    "gpt2": GPT2Config(n_layer=1, n_head=4, n_embd=32, vocab_size=48, bos_token_id=0, eos_token_id=0),
    "gpt_neox": GPTNeoXConfig(
        num_hidden_layers=1, num_attention_heads=4, hidden_size=32, vocab_size=48, intermediate_size=56
    ),
    "opt": OPTConfig(
        num_hidden_layers=1, num_attention_heads=4, hidden_size=32, vocab_size=48, ffn_dim=56, word_embed_proj_dim=32
    ),
}


@pytest.mark.parametrize("family", TIED_TO_HEADS)
def test_a_head_size_tied_to_the_hidden_size_is_refused_for_a_reason_that_holds(family: str) -> None:
    config = TIED_TO_HEADS[family]
    with pytest.raises(ConfigError, match=rf"^{family} can't be cloned: both axes of (\S+) \[") as caught:
        discover(config)
    name = str(caught.value).split("both axes of ")[1].split()[0]
    wider = copy.deepcopy(config)
    wider.hidden_size = 64
    shapes = [dict(meta_model(variant).named_parameters())[name].shape for variant in (config, wider)]
    assert f"{name} {list(shapes[0])} follow the hidden size" in str(caught.value)
    assert [b / a for a, b in zip(*shapes, strict=True)] == [2, 2]


def composite_config() -> Any:
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return Gemma3Config(text_config=tiny_config("gemma3_text").to_dict(), vision_config=vision | {"image_size": 28})


def test_a_config_whose_hidden_size_moves_nothing_is_refused() -> None:
    config = composite_config()
    config.hidden_size, config.num_attention_heads, config.num_hidden_layers = 32, 4, 2
    with pytest.raises(ConfigError, match=r"gemma3 can't be cloned: no tensor follows config\.hidden_size"):
        discover(config)


def test_a_composite_config_without_a_hidden_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="gemma3"):
        discover(composite_config())


def test_a_class_that_is_no_causal_lm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^t5 can't be built at hidden size 32: .*T5Config"):
        discover(T5Config(d_model=32, num_layers=1, num_heads=4, vocab_size=48))


def gemma4_config(**changes: Any) -> Any:
    """Make a config whose full layers have wider heads than its sliding ones."""
    fields = SIZES | {"num_hidden_layers": 3, "head_dim": 8, "global_head_dim": 12, "sliding_window": 4}
    fields |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
    fields |= {"vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    return Gemma4TextConfig(**fields | changes)


def test_a_head_size_that_differs_between_layers_stays_each_layer_s_own() -> None:
    config = gemma4_config()
    results = run_oracles(random_model(config))
    assert all(result.passed for result in results), [result for result in results if not result.passed]
    wide = meta_model(student_config(config, 16, tied=False)).get_parameter("model.layers.2.self_attn.q_proj.weight")
    assert wide.shape == (4 * 12, 16)


def test_a_tensor_outside_embedding_layers_norm_and_head_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"^gemma4_text can't be cloned: model\.(\S+) belongs to neither its embedding"
    ):
        discover(gemma4_config(hidden_size_per_layer_input=10))
