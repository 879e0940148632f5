"""Who shares a projection and where clone terms are measured, for each variant that the published flags name."""

from typing import Literal

import pytest

from lrc.clone.sites import ProjectedTensor, Stage, Variant, clone_terms, projection_of, short_name

Sharing = Literal["all", "io"]

ATTENTION = Stage(
    kind="attn",
    readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    writers=("self_attn.o_proj",),
    norm="input_layernorm",
    post_norm=None,
)
FFN = Stage(
    kind="mlp",
    readers=("mlp.gate_proj", "mlp.up_proj"),
    writers=("mlp.down_proj",),
    norm="post_attention_layernorm",
    post_norm=None,
)


def test_the_default_variant_shares_nothing() -> None:
    assert Variant() == Variant(attention_projections="all", ffn_projections="all", tie_embedding_projection=False)


@pytest.mark.parametrize("attention", ["all", "io"])
@pytest.mark.parametrize("ffn", ["all", "io"])
def test_each_kind_of_stage_has_its_own_flag(attention: Sharing, ffn: Sharing) -> None:
    variant = Variant(attention_projections=attention, ffn_projections=ffn)
    assert variant.shares_input("attn") is (attention == "io")
    assert variant.shares_input("mlp") is (ffn == "io")


@pytest.mark.parametrize("stage", [ATTENTION, FFN], ids=["attn", "mlp"])
def test_all_gives_every_reader_and_writer_its_own_projection(stage: Stage) -> None:
    modules = (*stage.readers, *stage.writers)
    assert tuple(projection_of(module, stage, Variant()) for module in modules) == modules


@pytest.mark.parametrize(("stage", "shared"), [(ATTENTION, "self_attn.input"), (FFN, "mlp.input")], ids=["attn", "mlp"])
def test_io_gives_all_readers_one_projection_and_the_writer_its_own(stage: Stage, shared: str) -> None:
    variant = Variant(attention_projections="io", ffn_projections="io")
    assert {projection_of(reader, stage, variant) for reader in stage.readers} == {shared}
    assert projection_of(stage.writers[0], stage, variant) == stage.writers[0]


def test_io_gives_a_router_and_its_stacked_experts_one_projection() -> None:
    readers, writer = ("mlp.gate", "mlp.experts.gate_up_proj"), "mlp.experts.down_proj"
    experts = Stage(kind="mlp", readers=readers, writers=(writer,), norm="norm", post_norm=None)
    variant = Variant(ffn_projections="io")
    assert [projection_of(site, experts, variant) for site in (*readers, writer)] == ["mlp.input", "mlp.input", writer]


def test_one_stage_s_flag_does_not_move_the_other_s_projections() -> None:
    assert projection_of("mlp.up_proj", FFN, Variant(attention_projections="io")) == "mlp.up_proj"
    assert projection_of("self_attn.q_proj", ATTENTION, Variant(ffn_projections="io")) == "self_attn.q_proj"


@pytest.mark.parametrize(
    ("stage", "sharing", "terms"),
    [
        (
            ATTENTION,
            "all",
            {
                "attn-q": "self_attn.q_proj",
                "attn-k": "self_attn.k_proj",
                "attn-v": "self_attn.v_proj",
                "attn-out": "self_attn.o_proj",
            },
        ),
        (ATTENTION, "io", {"attn-in": "self_attn.q_proj", "attn-out": "self_attn.o_proj"}),
        (FFN, "all", {"mlp-gate": "mlp.gate_proj", "mlp-up": "mlp.up_proj", "mlp-out": "mlp.down_proj"}),
        (FFN, "io", {"mlp-in": "mlp.gate_proj", "mlp-out": "mlp.down_proj"}),
    ],
)
def test_clone_terms_are_the_published_ones(stage: Stage, sharing: Sharing, terms: dict[str, str]) -> None:
    variant = Variant(attention_projections=sharing, ffn_projections=sharing)
    assert list(clone_terms(stage, variant).items()) == list(terms.items())


def test_a_second_writer_adds_a_term_with_its_name() -> None:
    parallel = Stage(
        kind="mlp", readers=("mlp.up_proj",), writers=("mlp.down_proj", "mlp.skip"), norm=None, post_norm=None
    )
    assert clone_terms(parallel, Variant()) == {
        "mlp-up": "mlp.up_proj",
        "mlp-out": "mlp.down_proj",
        "mlp-out-skip": "mlp.skip",
    }


@pytest.mark.parametrize("attention", ["all", "io"])
@pytest.mark.parametrize("ffn", ["all", "io"])
def test_no_two_terms_of_a_layer_share_a_name(attention: Sharing, ffn: Sharing) -> None:
    variant = Variant(attention_projections=attention, ffn_projections=ffn)
    names = [*clone_terms(ATTENTION, variant), *clone_terms(FFN, variant)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj"),
        ("model.layers.0.mlp.down_proj.bias", "model.layers.0.mlp.down_proj"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_projected_tensor_knows_its_module(name: str, module: str) -> None:
    assert ProjectedTensor(name=name, role="reader", axis=1).module == module


@pytest.mark.parametrize(("module", "short"), [("self_attn.q_proj", "q"), ("mlp.gate_proj", "gate"), ("c_fc", "c_fc")])
def test_short_names_drop_path_and_suffix(module: str, short: str) -> None:
    assert short_name(module) == short
