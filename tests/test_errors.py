"""The exit code that each kind of error ends with."""

import pytest

from lrc.errors import CheckpointError, ConfigError, DataError, LrcError, NumericsError


@pytest.mark.parametrize(
    ("error", "exit_code"), [(ConfigError, 2), (DataError, 2), (CheckpointError, 2), (NumericsError, 1)]
)
def test_bad_input_ends_with_2_and_failed_work_with_1(error: type[LrcError], exit_code: int) -> None:
    assert issubclass(error, LrcError)
    assert error("why").exit_code == exit_code
