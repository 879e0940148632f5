"""Clusters of near duplicates lose all but their earliest document, in whatever order the pairs come."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lrc.data.near_clusters import KeepEarliest, later_ones


def key(file: int, document: int) -> int:
    return (file << 32) + document


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_of_each_cluster_stays(seed: int) -> None:
    clusters = [[3, 9, key(1, 0), key(7, 2)], [key(2, 5), key(2, 6)], [1, key(9, 9)]]
    pairs = [pair for members in clusters for pair in pairwise(members)]
    order = random.Random(seed)
    order.shuffle(pairs)
    swapped = [pair if order.random() < 0.5 else pair[::-1] for pair in pairs]
    found = later_ones(np.asarray(swapped, dtype=np.uint64))
    assert found == sorted(member for members in clusters for member in members[1:])


def test_many_joined_to_a_later_document_leave_the_earliest() -> None:
    hub = key(9, 3)
    assert hub in later_ones(np.asarray([(hub, key(8, number)) for number in range(5)] + [(7, hub)], dtype=np.uint64))


def test_what_goes_is_written_a_file_each(tmp_path: Path) -> None:
    np.asarray([[0, 4, 2, 8], [2, 8, 2, 1]], dtype="<u4").tofile(tmp_path / "00000_00.dups")
    np.asarray([[2, 1, 1, 0]], dtype="<u4").tofile(tmp_path / "00001_00.dups")
    (tmp_path / "00002_00.dups").touch()
    KeepEarliest(str(tmp_path), str(tmp_path / "found"))(None, 0, 1)
    found = {path.name: np.fromfile(path, dtype="<u4").tolist() for path in (tmp_path / "found").iterdir()}
    assert found == {"000001.remove": [0], "000002.remove": [1, 8]}
