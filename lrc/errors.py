"""The errors a user can meet, each with the exit code that `lrc` ends with.

A message says what must hold, what was found, where, and what to do. Programmers' mistakes use `assert`.
"""

import difflib
from collections.abc import Iterable


class LrcError(Exception):
    """Base of every error that is explained to the user instead of shown as a traceback."""

    exit_code = 2


class ConfigError(LrcError):
    """A recipe, flag or model size that can't work."""


class DataError(LrcError):
    """Training or evaluation data that can't be used."""


class CheckpointError(LrcError):
    """A checkpoint or model folder that can't be read, written or trusted."""


class NumericsError(LrcError):
    """A value that is not finite, or a parity check that failed, during otherwise valid work."""

    exit_code = 1


def nearest_name(word: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to an unknown one, or None if none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(unknown: str, known: list[str]) -> str:
    """Word the hint of an unknown dotted key: the nearest one, by the whole or by its last part, or all there are."""
    leaf = unknown.rsplit(".", 1)[-1]
    by_leaf = {key: key.rsplit(".", 1)[-1] for key in known}
    same = (key for key, name in by_leaf.items() if name == unknown)  # its section was left out
    near = next(same, None) or nearest_name(unknown, known)
    if near is None:
        near_leaf = nearest_name(leaf, by_leaf.values())
        near = next((key for key, name in by_leaf.items() if name == near_leaf), None)
    return f" Known keys: {', '.join(sorted(known))}." if near is None else f" Did you mean {near!r}?"
