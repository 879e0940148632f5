"""FLOPs by formula are those that torch's counter sees in a real training step."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3MoeConfig

from lrc.clone.sites import Variant
from lrc.config import CHECKPOINTING, Checkpointing, ObjectiveConfig
from lrc.models.discovery import discover
from lrc.plan.flops import optimizer_flops, step_flops
from lrc.plan.sizes import measure_sizes
from lrc.training.optimizer import orthogonalise
from tests.plan.published import llama_3_2_3b
from tests.plan.real_step import LENGTH, ROWS, STUDENT, counted_flops, real_pair, small_config

IO = Variant(attention_projections="io", ffn_projections="io")


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize(
    ("variant", "objective"),
    [
        (Variant(), ObjectiveConfig()),
        (Variant(tie_embedding_projection=True), ObjectiveConfig(attention_output_space="teacher")),
        (IO, ObjectiveConfig(without=("mlp-out",))),
        (Variant(), ObjectiveConfig(without=("all",))),
    ],
    ids=["all", "tied-teacher-space", "io", "no-clone"],
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_flops_are_those_that_the_counter_sees(
    family: str, variant: Variant, objective: ObjectiveConfig, checkpointing: Checkpointing
) -> None:
    config = small_config(family, tie_word_embeddings=variant.tie_embedding_projection)
    architecture = discover(config)
    pair = real_pair(config, variant, objective, architecture)
    pair.set_activation_checkpointing(checkpointing)
    sizes = measure_sizes(config, architecture, variant, STUDENT)
    planned = step_flops(sizes, objective, batch=ROWS, sequence=LENGTH, checkpointing=checkpointing)
    # where the FFN's output is not compared, recomputation ends before its product, which the formula counts
    tolerance = 0.02 if checkpointing == "layer" and objective.without else 1e-6
    assert planned.total == pytest.approx(counted_flops(pair), rel=tolerance)


def test_stacked_experts_count_as_far_as_a_position_is_routed_to_them() -> None:
    config = Qwen3MoeConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        mlp_only_layers=[],
        decoder_sparse_step=1,
    )
    sizes = measure_sizes(config, discover(config), Variant(), 32)
    planned = step_flops(sizes, ObjectiveConfig(), batch=1, sequence=10, checkpointing="none")
    attention = 4 * 64 * 64 + 4 * 10 * 4 * 16 // 2  # q, k, v, o; scores and values, two FLOPs a product
    assert planned.teacher == 2 * 10 * (attention + 8 * 64 + 2 * 3 * 64 * 32)


def test_merges_cost_the_same_for_any_batch_but_for_the_embeddings_rows() -> None:
    config = llama_3_2_3b()
    sizes = measure_sizes(config, discover(config), Variant(tie_embedding_projection=True), 1536)
    one, two = (
        step_flops(sizes, ObjectiveConfig(), batch=batch, sequence=2048, checkpointing="none") for batch in (1, 2)
    )
    assert two.merge_forward - one.merge_forward == 2 * 2048 * 3072 * 1536
    others = {entry.name for entry in dataclasses.fields(one)} - {"merge_forward", "merge_backward", "checkpointing"}
    assert all(getattr(two, name) == 2 * getattr(one, name) for name in others)


def test_muon_s_flops_are_those_of_the_polar_factors_that_it_forms() -> None:
    config = small_config("llama")
    sizes = measure_sizes(config, discover(config), Variant(), STUDENT)
    with FlopCounterMode(display=False) as counter:
        for name in sizes.plan.trained:
            if name.startswith("projections."):
                orthogonalise(torch.randn(1, *sizes.trained_shapes[name]))
    assert optimizer_flops(sizes, "muon") == counter.get_total_flops()
    # of a projection as wide as it is half as tall: 44 d_S^3
    assert optimizer_flops(sizes, "muon") == (7 * 4 + 2) * 44 * STUDENT**3
    assert optimizer_flops(sizes, "adamw") == 0
