"""Exponents from synthetic timings, and sizes that a sweep doubles."""

import pytest

from benchmarks.speed.shapes import AXES, SHAPES
from benchmarks.speed.sweep import exponent, measure_sweep, sweep_table
from tests.benchmarks.tiny_settings import tiny_settings

FACTORS = [1, 2, 4, 8]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_power_law_gives_its_exponent(power: float) -> None:
    assert exponent(FACTORS, [3.7 * factor**power for factor in FACTORS]) == pytest.approx(power, abs=1e-12)


def test_a_constant_part_lowers_the_exponent_and_noise_averages_out() -> None:
    assert exponent([1, 2], [2.0, 3.0]) == pytest.approx(0.5849625)  # log2(3 / 2)
    noisy = [factor * wobble for factor, wobble in zip(FACTORS, (1.01, 0.99, 0.99, 1.01), strict=True)]
    assert exponent(FACTORS, noisy) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("axis", AXES)
def test_a_sweep_doubles_one_size_only(axis: str) -> None:
    small = SHAPES["tiny"]
    grown = small.grown(axis, 2)
    changed = {name for name, value in vars(grown).items() if value != getattr(small, name)}
    expected = {"tokens": {"batch"}, "width": {"hidden", "ffn", "heads", "kv_heads", "d_student"}}
    assert changed == expected.get(axis, {axis})
    assert all(getattr(grown, name) == 2 * getattr(small, name) for name in changed)
    assert grown.config().head_dim == small.head_dim


def test_the_table_ends_with_the_exponents() -> None:
    points = [
        {
            "value": factor,
            "median_seconds": 0.1 * factor**1.1,
            "predicted_seconds": 0.1 * factor,
            "product_seconds": 0.09 * factor,
            "pass_seconds": 0.008 * factor,
            "call_seconds": 0.002 * factor,
            "flops": 1e9 * factor,
            "pass_bytes": 2e9 * factor,
            "peak_bytes": 2**20,
        }
        for factor in FACTORS
    ]
    exponents = {"measured": 1.1, "predicted": 1.0, "products": 1.0, "flops": 1.0, "peak": 0.0}
    found = {"shape": "s", "axis": "layers", "seconds_of_a_call": 2e-5, "points": points, "exponents": exponents}
    text = sweep_table(found)
    assert text.startswith("s, layers doubled; a call 20.0 us\n")
    assert "| 2 | 0.214 | 0.2 | 0.18 | 0.016 | 0.004 | 2.0 | 4.00 | 1.0 |" in text
    assert "| exponent | 1.100 | 1.000 | 1.000 | | | 1.000 | | 0.000 |" in text
    assert text.endswith("+10.0%")


def test_a_tiny_sweep_measures_every_point() -> None:
    said: list[str] = []
    found = measure_sweep(SHAPES["tiny"], "vocabulary", 2, tiny_settings(), said.append)
    assert [point["value"] for point in found["points"]] == [512, 1024]
    assert all(point["peak_bytes"] > 0 < point["median_seconds"] for point in found["points"])
    assert 0 < found["exponents"]["flops"] < 1
    for point in found["points"]:
        parts = [point[name] for name in ("product_seconds", "pass_seconds", "call_seconds")]
        assert min(parts) > 0
        assert point["predicted_seconds"] == pytest.approx(sum(parts))
    first, second = found["points"]
    assert first["calls"] == second["calls"]  # one chunk of the head each
    assert first["pass_bytes"] < second["pass_bytes"]
    assert len(said) == 1
