"""Multipliers and stored gains are measured as the configs say they are, at the teacher's width and at another."""

import pytest

from lrc.errors import ConfigError
from lrc.models.discovery import discover
from lrc.models.scales import Scales, scale_law
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
