"""Numbers are rounded, never changed."""

import pytest

from lrc.report.number_text import (
    MISSING,
    bytes_text,
    count_text,
    duration_text,
    percent,
    ratio_text,
    significant,
    whole,
)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 4, MISSING),
        (0.0, 4, "0"),
        (1.07414, 4, "1.074"),
        (0.99996, 4, "1.000"),
        (-1.5, 3, "-1.50"),
        (1214.6, 4, "1,215"),
        (123456.0, 3, "123,000"),
        (0.00311, 3, "0.00311"),
        (0.00000312, 3, "3.1e-6"),
        (2.5e12, 4, "2.50e12"),
    ],
)
def test_significant(value: float | None, digits: int, text: str) -> None:
    assert significant(value, digits) == text


def test_units() -> None:
    assert count_text(134_515_008) == "134.5 M"
    assert count_text(999) == "999"
    assert count_text(0) == "0"
    assert count_text(20_000) == "20 k"
    assert count_text(10_000_000_000, 3) == "10 B"
    assert bytes_text(269_060_552) == "269.1 MB"
    assert bytes_text(12) == "12 B"
    assert whole(1536) == "1,536"
    assert percent(0.5094) == "50.9 %"
    assert percent(0.0005) == "0.05 %"
    assert percent(None) == MISSING
    assert duration_text(42.0) == "42.0 s"
    assert duration_text(141.7) == "2.36 min"
    assert duration_text(122_400) == "34.0 h"


def test_ratio_needs_both_numbers() -> None:
    assert ratio_text(1, 4) == "0.250×"
    assert ratio_text(1, None) == MISSING
    assert ratio_text(None, 1) == MISSING
    assert ratio_text(1, 0) == MISSING
