"""Positions inside a block: counted anew at each document."""

import numpy as np
import pytest

from lrc.data.block import Block, positions_of


@pytest.mark.parametrize(
    ("starts", "positions"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ([], [0, 1, 2, 3, 4, 5]),
        ([0], [0, 1, 2, 3, 4, 5]),
        ([0, 2], [0, 1, 0, 1, 2, 3]),
        ([3, 4], [0, 1, 2, 0, 0, 1]),
        ([5], [0, 1, 2, 3, 4, 0]),
    ],
)
def test_positions_restart_where_documents_start(starts: list[int] | None, positions: list[int]) -> None:
    given = None if starts is None else np.asarray(starts, dtype=np.int64)
    assert positions_of(Block(np.arange(6), "general", given)).tolist() == positions
