"""The errors a user can meet, each with the exit code that `lrc` ends with.

A message says what must hold, what was found, where, and what to do. Programmers' mistakes use `assert`.
"""


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
