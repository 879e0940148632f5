"""Which clone terms are measured, and which of them a layer has."""

from contextlib import nullcontext
from typing import Any

import pytest

from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.errors import ConfigError
from lrc.method_config import Method
from lrc.models.discovery import discover
from lrc.models.terms import measured_points, measured_terms, point_weights
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.tiny_configs import tiny_config

LLAMA = ("attn-q", "attn-k", "attn-v", "attn-out", "mlp-gate", "mlp-up", "mlp-out")


def terms_of(method: Method = "clone", variant: Variant | None = None, **objective: Any) -> tuple[str, ...]:
    architecture = discover(tiny_config("llama"))
    return measured_terms(architecture, variant or Variant(), ObjectiveConfig(**objective), method)


def test_every_reader_and_writer_is_a_term_and_shared_inputs_are_one() -> None:
    assert terms_of() == LLAMA
    shared = Variant(attention_projections="io", ffn_projections="io")
    assert terms_of(variant=shared) == ("attn-in", "attn-out", "mlp-in", "mlp-out")
    assert terms_of(without=("attn-k", "mlp-out")) == ("attn-q", "attn-v", "attn-out", "mlp-gate", "mlp-up")
    assert terms_of(without=("all",)) == ()


def test_the_terms_of_tiny_bert_are_its_own() -> None:
    assert terms_of("tiny_bert") == ("hidden", "attention-map")
    assert terms_of("tiny_bert", clone_weight=0.0) == ("attention-map",)


def test_a_term_that_the_student_lacks_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"lacks: attn-in\. It has attn-q, attn-k"):
        terms_of(without=("attn-in",))
    with pytest.raises(
        ConfigError, match=r"objective\.clone_term_weights names .* lacks: mlp-in\. It has attn-q, attn-k"
    ):
        terms_of(clone_term_weights={"mlp-in": 2.0, "mlp-out": 1.0})
    with pytest.raises(ConfigError, match=r"objective\.clone_term_weights names .* lacks: all"):
        terms_of(clone_term_weights={"all": 2.0})


def test_terms_that_leave_nothing_to_train_on_are_refused() -> None:
    clone_alone: dict[str, Any] = {"lm_weight": 0.0, "kl_weight": 0.0, "clone_weight": 1.0}
    no_term, no_weight = {"without": LLAMA}, {"clone_term_weights": dict.fromkeys(LLAMA, 0.0)}
    one_left = {"without": LLAMA[1:], "clone_term_weights": {LLAMA[0]: 0.0}}
    for nothing in (no_term, no_weight, one_left, {"clone_weight": 0.0}):
        with pytest.raises(ConfigError, match=r"nothing to train on: .* This student has attn-q, attn-k"):
            terms_of(**clone_alone | nothing)
        for trained in ({"lm_weight": 1.0}, {"kl_weight": 1.0}):
            terms_of(**clone_alone | nothing | trained)
    with pytest.raises(ConfigError, match="nothing to train on"):
        terms_of("tiny_bert", **clone_alone, without=("hidden", "attention-map"))
    assert terms_of(**clone_alone, without=LLAMA[1:]) == LLAMA[:1]
    assert terms_of(**clone_alone, clone_term_weights=dict.fromkeys(LLAMA[1:], 0.0)) == LLAMA


def test_a_term_of_a_layer_that_depth_counts_out_is_nothing_to_train_on() -> None:
    config = FAMILY_CONFIGS["deepseek_v3"]()
    config.num_hidden_layers = 2  # a dense one, one of experts
    architecture = discover(config)
    names = measured_terms(architecture, Variant(), ObjectiveConfig())
    first, last = measured_points(architecture, Variant(), names)
    without = tuple(name for name in names if name in first)
    for slope, outcome in ((-1.0, pytest.raises(ConfigError, match="nothing to train on")), (1.0, nullcontext())):
        objective = ObjectiveConfig(lm_weight=0.0, kl_weight=0.0, without=without, clone_depth_slope=slope)
        with outcome:
            assert set(measured_terms(architecture, Variant(), objective)) == last - first


def test_points_count_by_their_term_and_evenly_more_with_depth() -> None:
    assert point_weights(ObjectiveConfig(clone_term_weights={"mlp-out": 1.0}), 3, LLAMA) is None
    both = ObjectiveConfig(clone_term_weights={"b": 3.0}, clone_depth_slope=0.5)
    found = point_weights(both, 3, ("a", "b"))
    assert found is not None
    assert found.tolist() == [[0.5, 1.5], [1.0, 3.0], [1.5, 4.5]]
    single = point_weights(ObjectiveConfig(clone_depth_slope=0.5), 1, ("a",))
    assert single is not None
    assert single.tolist() == [[1.0]]


def test_layers_of_one_kind_have_every_term() -> None:
    architecture = discover(tiny_config("llama"))
    assert measured_points(architecture, Variant(), LLAMA) == (frozenset(LLAMA),) * 2
    assert measured_points(architecture, Variant(), ("attn-q",)) == (frozenset({"attn-q"}),) * 2
    assert measured_points(architecture, Variant(), ("hidden", "attention-map")) == (
        frozenset({"hidden", "attention-map"}),
    ) * len(architecture.stages)


def test_a_dense_layer_and_one_of_experts_have_each_their_own() -> None:
    architecture = discover(FAMILY_CONFIGS["deepseek_v3"]())
    names = measured_terms(architecture, Variant(), ObjectiveConfig())
    points = measured_points(architecture, Variant(), names)
    assert len(set(points)) > 1
    assert set().union(*points) == set(names)
