"""Of near duplicates the earliest stays: the step that takes the place of datatrove's `MinhashDedupCluster`.

datatrove keeps the document that most others were joined to. That may lie behind the token budget of its source, where
nothing is written, and then none of the cluster would be left.
"""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class KeepEarliest:
    """Reads the pairs that `MinhashDedupBuckets` found and writes what `MinhashDedupFilter` leaves out."""

    pairs: str
    """Folder of `.dups` files: rows of four uint32, (file, document) of the one and of the other."""
    duplicates: str
    """Folder of the `.remove` files, one a source file: the numbers of its documents that go, rising."""

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Join pairs into clusters and list all documents but the first of each."""
        removed = later_ones(np.concatenate([_read_pairs(path) for path in sorted(Path(self.pairs).glob("*.dups"))]))
        folder = Path(self.duplicates)
        folder.mkdir(parents=True, exist_ok=True)
        for file, keys in groupby(removed, key=lambda key: key >> 32):
            documents = np.asarray([key & 0xFFFF_FFFF for key in keys], dtype="<u4")
            (folder / f"{file:06d}.remove").write_bytes(documents.tobytes())


def later_ones(pairs: np.ndarray) -> list[int]:
    """List the members of clusters that are not their cluster's smallest.

    Args:
        pairs: `[pairs, 2]` uint64, members of one cluster each; a member is file x 2^32 + document.

    Returns:
        The members, rising.
    """
    smaller: dict[int, int] = {}

    def smallest(key: int) -> int:
        while smaller.setdefault(key, key) != key:
            smaller[key] = smaller[smaller[key]]  # halves the way of the next search
            key = smaller[key]
        return key

    for one, other in pairs.tolist():
        first, second = sorted((smallest(one), smallest(other)))
        smaller[second] = first
    return sorted(key for key, below in smaller.items() if key != below)


def _read_pairs(path: Path) -> np.ndarray:
    rows = np.fromfile(path, dtype="<u4").astype(np.uint64).reshape(-1, 2, 2)
    pairs: np.ndarray = (rows[..., 0] << np.uint64(32)) | rows[..., 1]
    return pairs
