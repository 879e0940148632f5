"""The trace tells roles and stages that shapes can't: stacked experts, latent attention, parallel blocks."""

import pytest
import torch
from transformers import FlexOlmoConfig, JetMoeConfig

from lrc.clone.sites import Variant, layer_terms
from lrc.errors import ConfigError
from lrc.models.discovery import discover
from lrc.models.oracles import run_oracles
from lrc.models.tiny import random_model
from lrc.models.trace import multiple, run_trace
from tests.models.family_configs import BASE, FAMILY_CONFIGS


def test_experts_stored_input_first_are_read_on_the_side_that_they_are_used() -> None:
    experts = "model.layers.0.mlp.experts."
    found = discover(FAMILY_CONFIGS["gpt_oss"]())
    roles = {name.removeprefix(experts): entry for name, entry in found.projected.items() if experts in name}
    assert {name: (entry.role, entry.axis) for name, entry in roles.items()} == {
        "gate_up_proj": ("reader", 1),
        "down_proj": ("writer", 2),
        "down_proj_bias": ("writer", 1),
    }
    assert f"{experts}gate_up_proj_bias" in found.inherited
    assert roles["down_proj_bias"].site == roles["down_proj"].site == f"{experts}down_proj"


def test_of_latent_attention_only_what_reads_the_stream_is_a_reader() -> None:
    stage = discover(FAMILY_CONFIGS["deepseek_v3"]()).stages[1][0]
    assert stage.readers == ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")
    assert stage.writers == ("self_attn.o_proj",)


@pytest.mark.parametrize(("family", "factors"), [("granite", [0.4, 0.4]), ("cohere", [None, None]), ("phi3", [1, 1])])
def test_how_a_block_joins_the_stream(family: str, factors: list[float | None]) -> None:
    stages = discover(FAMILY_CONFIGS[family]()).stages[0]
    assert [stage.residual for stage in stages] == pytest.approx(factors, abs=1e-5)


def test_parallel_blocks_share_one_norm() -> None:
    stages = discover(FAMILY_CONFIGS["cohere"]()).stages[0]
    assert [stage.norm for stage in stages] == ["input_layernorm", "input_layernorm"]
    assert [stage.kind for stage in stages] == ["attn", "mlp"]


@pytest.mark.parametrize("family", ["llama", "olmo2", "qwen3_moe", "gpt_oss", "falcon_h1"])
def test_a_block_is_named_only_where_nothing_else_shows_the_stream(family: str) -> None:
    assert {stage.block for layer in discover(FAMILY_CONFIGS[family]()).stages for stage in layer} == {None}


def test_experts_that_read_the_stream_without_a_norm_are_told() -> None:
    config = FlexOlmoConfig(**BASE, num_experts=4, num_experts_per_tok=2)
    _, experts = discover(config).stages[0]
    assert experts.readers == ("mlp.gate", "mlp.experts.gate_up_proj")
    assert (experts.norm, experts.post_norm, experts.residual) == (None, "post_feedforward_layernorm", 1.0)
    assert experts.point == experts.block == "mlp"
    results = run_oracles(random_model(config))
    assert all(result.passed for result in results), [result for result in results if not result.passed]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"])
def test_clone_points_of_experts_are_the_router_s_logits_and_the_block_s_output(family: str) -> None:
    config = FAMILY_CONFIGS[family]()
    found, model = discover(config), random_model(config)
    terms = layer_terms(found.stages[1], Variant())
    router = next(site for term, (site, _) in terms.items() if term in ("mlp-gate", "mlp-router"))
    out, stage = terms["mlp-out"]
    calls = {call.module: call for call in run_trace(model, found.base).calls}
    block, gate = (calls[f"model.layers.1.{stage.module_of(site)}"] for site in (out, router))
    weights = model.get_submodule(gate.module)
    logits = torch.nn.functional.linear(gate.input.reshape(-1, 32), weights.weight, getattr(weights, "bias", None))
    torch.testing.assert_close(gate.output.reshape(logits.shape), logits)
    assert block.module == "model.layers.1.mlp.experts"
    assert block.output.numel() == block.input.numel()


def test_experts_that_get_rows_of_their_block_s_making_are_refused_with_both_counts() -> None:
    config = JetMoeConfig(**BASE, num_local_experts=4, num_experts_per_tok=2, kv_channels=8)
    with pytest.raises(ConfigError, match=r"\.input_linear reads 24 rows that its block makes of 12 positions"):
        discover(config)


def test_a_constant_multiple_is_found_in_any_shape_and_nothing_else_is() -> None:
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert multiple(values, values.view(6, 4)) == 1.0
    assert multiple(values, -2.5 * values.view(6, 4)) == pytest.approx(-2.5)
    assert multiple(values, values + 0.1) is None
    assert multiple(values, values[:1]) is None
    assert multiple(torch.zeros(3), torch.zeros(3)) is None
