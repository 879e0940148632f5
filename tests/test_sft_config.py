"""The section `sft`: every number out of its range is named."""

from typing import Any

import pytest

from lrc.sft_config import ABOVE_ZERO, NOT_NEGATIVE, SHARES, SftConfig, sft_problems


def test_the_defaults_have_no_problem() -> None:
    assert sft_problems(SftConfig()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, 0) for key in ABOVE_ZERO.split()),
        *((key, -1) for key in NOT_NEGATIVE.split()),
        *((key, 1.0) for key in SHARES.split()),
        ("teacher_kl", float("nan")),
        ("epochs", float("inf")),
    ],
)
def test_a_number_out_of_range_is_named(key: str, value: Any) -> None:
    (problem,) = sft_problems(SftConfig(**{key: value}))
    assert problem.startswith(f"sft.{key} must ")
    assert problem.endswith(f"found {value}")


def test_all_problems_are_told_at_once() -> None:
    assert len(sft_problems(SftConfig(epochs=0, seed=-1, warmup_ratio=2))) == 3
