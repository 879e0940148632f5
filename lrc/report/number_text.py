"""Numbers as people read them, the same in the page, the plots and the Markdown."""

from decimal import Decimal

MISSING = "–"
"""Stands where a verb wrote null."""

_COUNT_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def significant(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits, with an exponent only if very large or small."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    rounded = Decimal(f"{value:.{digits - 1}e}")
    return f"{rounded:,f}"


def whole(value: float | None) -> str:
    """Return a number without decimals, in groups of three digits."""
    return MISSING if value is None else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """Return a share of 0 to 1 in percent, with one decimal, or two below 1 %."""
    if share is None:
        return MISSING
    return f"{100 * share:.{1 if abs(share) >= 0.01 else 2}f} %"


def ratio_text(numerator: float | None, denominator: float | None) -> str:
    """Return how many times the denominator the numerator is."""
    if numerator is None or not denominator:
        return MISSING
    return f"{significant(numerator / denominator, 3)}×"


def count_text(value: float | None, digits: int = 4) -> str:
    """Return a count in k, M, B or T."""
    return _scaled(value, _COUNT_UNITS, digits, plain_unit="")


def bytes_text(value: float | None, digits: int = 4) -> str:
    """Return a size in kB, MB, GB or TB (powers of 1,000)."""
    return _scaled(value, _BYTE_UNITS, digits, plain_unit="B")


def duration_text(seconds: float | None) -> str:
    """Return a time in the unit that suits its size."""
    if seconds is None:
        return MISSING
    if seconds < 100:
        return f"{significant(seconds, 3)} s"
    if seconds < 100 * 60:
        return f"{significant(seconds / 60, 3)} min"
    return f"{significant(seconds / 3600, 3)} h"


def _scaled(value: float | None, units: tuple[tuple[float, str], ...], digits: int, *, plain_unit: str) -> str:
    if value is None:
        return MISSING
    scale, unit = next(((size, name) for size, name in units if abs(value) >= size), (1.0, plain_unit))
    number = significant(value / scale, digits)
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".rstrip()
