"""Oddities are said of an architecture that has them and of no other."""

from dataclasses import replace

import pytest

from lrc.models.discovery import discover
from lrc.models.oddities import oddities
from tests.models.family_configs import FAMILY_CONFIGS


@pytest.mark.parametrize("family", ["llama, llama3 rope", "mistral", "qwen2", "phi3", "smollm3"])
def test_a_plain_decoder_has_none(family: str) -> None:
    config = FAMILY_CONFIGS[family]()
    assert oddities(discover(config), config) == []


def test_all_of_a_gemma_2_is_said_in_order() -> None:
    config = FAMILY_CONFIGS["gemma2"]()
    assert oddities(discover(config), config) == [
        "embedding rows are multiplied by 5.65685, which grows with the root of the hidden size",
        "logits are capped at 3",
        "norm gains are stored as 1 + w",
        "a norm stands after the writers",
    ]


def test_a_constant_that_does_not_grow_is_said_without_a_law() -> None:
    config = FAMILY_CONFIGS["granite"]()
    assert oddities(discover(config), config)[:2] == [
        "embedding rows are multiplied by 3",
        "logits are multiplied by 0.5",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"residual": None}, "two stages read the stream side by side, or a block is not simply added"),
        ({"residual": 0.5}, "what a block writes is multiplied before it joins the stream"),
        ({"norm": None}, "readers get the stream without a norm"),
        ({"post_norm": "norm"}, "a norm stands after the writers"),
        ({"writers": ("mlp.a", "mlp.b")}, "several writers answer one input"),
    ],
    ids=str,
)
def test_one_odd_stage_is_enough_and_makes_a_second_kind_of_layer(changes: dict[str, object], said: str) -> None:
    config = FAMILY_CONFIGS["mistral"]()
    found = discover(config)
    attention, mlp = found.stages[1]
    odd = (attention, replace(mlp, **changes))  # type: ignore[arg-type]
    assert oddities(replace(found, stages=(found.stages[0], odd, found.stages[2])), config) == [
        "2 kinds of layers",
        said,
    ]


def test_norms_without_a_gain_are_told_from_norms_with_one() -> None:
    config = FAMILY_CONFIGS["mistral"]()
    found = discover(config)
    gains = tuple(name for name in found.gains if "layers.1.input_layernorm" not in name)
    assert oddities(replace(found, gains=gains), config) == ["norms have no gain"]


def test_a_head_s_bias_is_said() -> None:
    config = FAMILY_CONFIGS["phi"]()
    assert "the head has a bias, which the student inherits" in oddities(discover(config), config)
