"""Multipliers and stored gains are measured as the configs say they are, at the teacher's width and at another."""

import math

import pytest
from torch import nn

from lrc.errors import ConfigError
from lrc.models.discovery import discover
from lrc.models.scales import Scales, check_layer_constants, scale_law
from tests.models.family_configs import FAMILY_CONFIGS

PLAIN = Scales(embedding=1.0, beside_embedding=1.0, logits=1.0, unit_gain=1.0)


@pytest.mark.parametrize(
    ("family", "width", "expected"),
    [
        ("llama", 16, (1.0, 1.0, 1.0, 1.0)),
        ("granite", 16, (3.0, 3.0, 0.5, 1.0)),
        ("cohere", 32, (1.0, 1.0, 0.25, 1.0)),
        ("gemma2", 32, (32**0.5, 1.0, 1.0, 0.0)),
        ("gemma3_text", 16, (4.0, 1.0, 1.0, 0.0)),
        ("phi", 16, (1.0, 1.0, 1.0, 1.0)),
        ("falcon_h1", 16, (2.0, 2.0, 0.5, 1.0)),
    ],
)
def test_constants_are_those_of_the_config(family: str, width: int, expected: tuple[float, ...]) -> None:
    found = discover(FAMILY_CONFIGS[family]()).scale_law.at_width(width)
    measured = (found.embedding, found.beside_embedding, found.logits, found.unit_gain)
    assert measured == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("wide", "reason"),
    [
        (Scales(embedding=1.0, beside_embedding=1.0, logits=0.5, unit_gain=1.0), "logit scale follows"),
        (Scales(embedding=2.0, beside_embedding=1.0, logits=1.0, unit_gain=1.0), "by an unknown law"),
    ],
    ids=["logits", "embedding"],
)
def test_a_constant_that_follows_the_width_in_an_unknown_way_is_refused(wide: Scales, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        scale_law(PLAIN, wide, width=32, kind="odd")


class Latent(nn.Module):
    """A module of a layer, with the constant that LongCat-Flash puts on its latents."""

    def __init__(self, factor: float, width: int) -> None:
        super().__init__()
        self.eps, self.limit, self.width = 1e-6, math.nan, width
        self.factor = factor


class Model(nn.Module):
    """Layers, and outside of them a constant that may follow the width."""

    def __init__(self, width: int, *, follows: bool) -> None:
        super().__init__()
        self.embed_scale = width**0.5
        factors = [1.0, (width / 4) ** 0.5 if follows else 2.0]
        self.layers = nn.ModuleList(nn.ModuleDict({"attention": Latent(factor, width)}) for factor in factors)


def test_a_constant_inside_a_layer_that_follows_the_width_is_refused_by_name() -> None:
    check_layer_constants(Model(16, follows=False), Model(32, follows=False), layers="layers", kind="odd")
    with pytest.raises(ConfigError, match=r"layers\.1\.attention\.factor follows the hidden size \(2 and 2\.828 at"):
        check_layer_constants(Model(16, follows=True), Model(32, follows=True), layers="layers", kind="odd")
