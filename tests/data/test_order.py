"""The order of blocks: a permutation an epoch, fixed for a seed, in constant memory and time."""

import time
import tracemalloc
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from lrc.data.order import mix, shuffled


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 5), num_blocks=st.integers(1, 300))
@settings(deadline=None, max_examples=80)
def test_every_epoch_is_a_permutation(seed: int, epoch: int, num_blocks: int) -> None:
    order = [shuffled(seed, epoch * num_blocks + offset, num_blocks) for offset in range(num_blocks)]
    assert sorted(order) == list(range(num_blocks))


def test_no_block_prefers_a_place() -> None:
    counts = [[0] * 5 for _ in range(5)]
    for seed in range(2000):
        for offset in range(5):
            counts[offset][shuffled(seed, offset, 5)] += 1
    assert all(300 < count < 500 for row in counts for count in row)  # 400 expected, standard deviation 18


def test_neighbours_are_scattered() -> None:
    order = [shuffled(1, offset, 10_000) for offset in range(10_000)]
    near = sum(abs(a - b) <= 10 for a, b in pairwise(order))
    assert near < 60  # 20 expected


def test_ten_billion_blocks_cost_no_memory_and_no_time() -> None:
    tracemalloc.start()
    began = time.monotonic()
    found = {shuffled(0, offset, 10**10) for offset in range(1000)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1000
    assert max(found) > 9 * 10**9
    assert peak < 1_000_000
    assert time.monotonic() - began < 5


def test_mixing_is_splitmix64() -> None:
    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of the reference code for seed 0
