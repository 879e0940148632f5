"""What makes two cells the same run: the recipe without places, the texts, the teacher's weights."""

import json
from collections.abc import Mapping
from typing import Any

from lrc.config import named_answer
from lrc.errors import ConfigError

PLACES = ("run", "teacher")
"""Parts of a recipe that say where, not what."""
GUARDS = ("divergence_factor",)
"""Settings of `train` that can end a run and change nothing of one that ended by itself."""

LATER: tuple[tuple[str, str, Any], ...] = (
    ("student", "correction", "none"),
    ("start", "basis", "principal"),
    ("objective", "clone_term_weights", {}),
    ("objective", "clone_depth_slope", 0.0),
    ("train", "rate_shares", {}),
)
"""Keys that came after the first results, and what every recipe had before."""


def identity_of(result: Mapping[str, Any], teacher_hash: str) -> dict[str, Any]:
    """Return what a result is the same as; one without its teacher's hash is of the teacher that has its name now."""
    return identity(result["recipe"], result["texts"], result.get("teacher_hash", teacher_hash))


def identity(recipe: Mapping[str, Any], texts: Mapping[str, Any], teacher_hash: str) -> dict[str, Any]:
    """Return what makes two runs the same, one key a value: `train.seed`, `texts.sha256.train`, ..."""
    read = {key: value for key, value in texts.items() if key != "origin"}
    return {**settings_of(recipe), **_flat(_plain({"texts": read, "teacher_hash": teacher_hash}))}


def settings_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings without places, guards, and what a start does not read: tokens, basis, passes.

    One key a value.
    """
    values = {key: value for key, value in recipe.items() if key not in PLACES}
    for section, key, was in LATER:
        if section in values:
            found = values[section] = {key: was, **values[section]}
            value = named_answer(section, key, found[key])
            found[key] = sorted(value.items()) if isinstance(value, Mapping) else value
    is_clone, start = recipe.get("method", "clone") == "clone", dict(values.pop("start", {}))
    is_few = start.get("method") == "channel" and start.get("channel_score", "magnitude") == "magnitude"
    if is_few or start.get("method") == "random" or not is_clone:
        start.pop("tokens", None)
    if start.get("method") != "calibrated" or not is_clone:
        start.pop("basis", None)
    if values.get("student", {}).get("correction") != "mlp":
        start.pop("correction_passes", None)
    data = {key: value for key, value in values.pop("data", {}).items() if key not in ("train", "held_out")}
    train = {key: value for key, value in values.pop("train", {}).items() if key not in GUARDS}
    return _flat(_plain({**values, "start": start, "data": data, "train": train}))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys that both have with unlike values: a key that only one lrc version knows says nothing."""
    return sorted(key for key in one.keys() & other.keys() if one[key] != other[key])


def check_same(wanted: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError if what was found was made otherwise than what is wanted."""
    differ = differing(wanted, found)
    if differ:
        shown = ", ".join(f"{key} ({found[key]!r} there, {wanted[key]!r} now)" for key in differ[:4])
        raise ConfigError(
            f"{where} was made with other settings: {shown}. Keep it by asking for the same ones, or make the cell "
            "anew with --overwrite."
        )


def _plain(value: Any) -> Any:
    """Return a value as JSON would hold it: tuples are lists."""
    return json.loads(json.dumps(value))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
