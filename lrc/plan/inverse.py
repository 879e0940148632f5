"""The plan read backwards: which hidden size gives so many parameters, and which still fits in so much memory."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrc.clone.sites import Variant
from lrc.errors import ConfigError
from lrc.models.discovery import Architecture
from lrc.models.student import student_config
from lrc.plan.sizes import measure_sizes

STEP = 64
"""Hidden sizes that are looked at are multiples of this, or of what the class demands."""
_COUNT = re.compile(r"([\d.]+)\s*([kmbt]?)", re.IGNORECASE)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def parse_count(text: str, *, what: str) -> float:
    """Read `1.5B`, `400M`, `2e9` or a plain number.

    Raises:
        ConfigError: It is none of them, or not above 0; `what` names it.
    """
    match = _COUNT.fullmatch(text.strip())
    try:
        value = float(match[1]) * _UNITS[match[2].lower()] if match else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{what} must be a number above 0 such as 1.5B or 400M, found {text!r}.")
    return value


@dataclass(frozen=True, kw_only=True)
class HiddenSizeAnswer:
    """Which hidden size gives a number of parameters."""

    exact: float
    """Where the count is met, as if sizes were no whole numbers."""
    nearest: tuple[tuple[int, int], ...]
    """(hidden size, parameters) of the nearest sizes that the class takes, below and above."""


def hidden_size_for(
    parameters: float, *, config: Any, architecture: Architecture, variant: Variant
) -> HiddenSizeAnswer:
    """Solve `parameters(h) = a h + b`: every tensor has the hidden size once or not at all.

    Raises:
        ConfigError: No student of the teacher has so many parameters.
    """
    sizes = allowed_sizes(config)
    if not sizes:
        raise ConfigError(f"No hidden size below the teacher's {config.hidden_size} works for {config.model_type}.")

    def count(size: int) -> int:
        return measure_sizes(config, architecture, variant, size).student_parameters

    low, high = sizes[0], sizes[-1]
    low_count, high_count = count(low), count(high)
    slope = (high_count - low_count) / (high - low) if high > low else 1.0
    exact = low + (parameters - low_count) / slope
    if not low <= exact <= high:
        raise ConfigError(
            f"--params must lie between {low_count / 1e9:.3g} B (hidden size {low}) and {high_count / 1e9:.3g} B "
            f"(hidden size {high}) for this teacher, found {parameters / 1e9:.3g} B."
        )
    below = max(size for size in sizes if size <= exact)
    above = min(size for size in sizes if size >= exact)
    return HiddenSizeAnswer(exact=exact, nearest=tuple((size, count(size)) for size in sorted({below, above})))


def allowed_sizes(config: Any) -> list[int]:
    """List hidden sizes below the teacher's that the class takes.

    In steps of `STEP`, of less for small teachers, or of the head count where the class wants a multiple of it.
    """
    heads = getattr(config, "num_attention_heads", None) or 1
    step = STEP if config.hidden_size >= 16 * STEP else max(2, config.hidden_size // 32)
    for candidate in (step, _least_multiple(heads, step), heads):
        sizes = list(range(candidate, config.hidden_size, candidate))
        if sizes and _is_taken(config, sizes[0]) and _is_taken(config, sizes[-1]):
            return sizes
    return []


def _least_multiple(heads: int, at_least: int) -> int:
    return heads * -(-at_least // heads)


def _is_taken(config: Any, size: int) -> bool:
    try:
        student_config(config, size, tied=False)
    except ConfigError:
        return False
    return True


def largest_size(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """Find the largest of ascending sizes that fits, given that every smaller one then fits too; None if none does."""
    low, high = -1, len(sizes)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return None if low < 0 else sizes[low]
