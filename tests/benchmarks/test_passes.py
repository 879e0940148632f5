"""Bytes that operations move, against sizes by hand, and their price."""

import pytest
import torch
from torch import Tensor

from benchmarks.speed.passes import SMALLEST, Passes, PassRates, Size, count_passes
from tests.benchmarks.test_rates import CALLS_ON_A_GPU, FakeGpu

ROWS, WIDTH = 64, 128
VALUES = ROWS * WIDTH


def matrix(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(ROWS, WIDTH, dtype=dtype)


def test_an_operation_moves_what_it_reads_and_what_it_writes() -> None:
    left, right, row = matrix(), matrix(), torch.ones(WIDTH)
    assert count_passes(lambda: left * right).bytes.total() == 3 * 4 * VALUES
    assert count_passes(lambda: left * left).bytes.total() == 2 * 4 * VALUES
    assert count_passes(lambda: left.add_(right)).bytes.total() == 3 * 4 * VALUES
    assert count_passes(lambda: left + row.expand(ROWS, WIDTH)).bytes.total() == 4 * (2 * VALUES + WIDTH)
    assert count_passes(lambda: left[:32].exp()).bytes.total() == 2 * 4 * VALUES // 2
    assert count_passes(lambda: left.copy_(right.bfloat16())).bytes.total() == (6 + 6) * VALUES  # the cast is one too
    assert count_passes(lambda: left.zero_()).bytes.total() == 4 * VALUES
    assert count_passes(lambda: torch.zeros_like(left)).bytes.total() == 4 * VALUES
    assert count_passes(lambda: torch.mul(left, right, out=left)).bytes.total() == 3 * 4 * VALUES


def test_products_views_and_rows_that_are_not_chosen_move_nothing() -> None:
    left, table, chosen = matrix(), torch.ones(10_000, WIDTH), torch.arange(ROWS)
    counted = count_passes(lambda: [left @ left.T, left.view(-1), torch.empty(1_000_000), left.detach()])
    assert counted.bytes.total() == 0
    assert counted.calls == 5  # the transposed view is one
    moved = count_passes(lambda: torch.nn.functional.embedding(chosen, table)).bytes.total()
    assert moved == 2 * 4 * VALUES + 8 * ROWS


def test_gradients_and_optimisers_count() -> None:
    weight = torch.nn.Parameter(matrix())
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = matrix()
    optimizer.step()  # makes its moments
    updated = count_passes(optimizer.step).bytes
    assert max(updated.values()) == pytest.approx(4 * 7 * VALUES, rel=1e-3)  # reads four tensors, writes three
    weight.grad = None
    backward = count_passes(lambda: weight.exp().sum().backward()).bytes.total()
    exp, total, gradient, one = 2 * 4 * VALUES, 4 * VALUES + 4, 2 * 4 * VALUES + 4, 2**SMALLEST
    assert backward == exp + total + gradient + one  # the gradient is the result times an expanded one


def test_passes_are_kept_by_dtype_and_size_and_the_smallest_cost_a_call() -> None:
    wide, narrow = matrix(torch.bfloat16), torch.ones(3)
    with Passes() as counted:
        wide.exp()
        wide.float()
        narrow.exp()
    assert counted.bytes == {
        Size("bfloat16", 15): 2 * 2 * VALUES,
        Size("float32", 15): (2 + 4) * VALUES,
        Size("float32", SMALLEST): 2**SMALLEST,
    }


def test_a_byte_costs_what_it_does_in_a_pass_of_its_size() -> None:
    values = matrix()
    counted = count_passes(lambda: [values.exp_(), torch.ones(3).exp()])
    size = max(counted.bytes, key=lambda size: size.power)
    rates = PassRates(counted.bytes, device=torch.device("cpu"))
    rates.measure()
    assert all(len(times) == 1 and times[0] > 0 for times in rates.seconds.values())
    for found, times in rates.seconds.items():
        times[:] = [1.0, 2.0, 40.0] if found == size else [0.0]
    assert rates.seconds_of(counted) == pytest.approx(2.0 * counted.bytes[size] / 2**size.power)


@pytest.mark.parametrize("power", [SMALLEST, 26])
def test_a_pass_on_a_gpu_is_warm_and_repeated_whatever_its_size(monkeypatch: pytest.MonkeyPatch, power: int) -> None:
    gpu = FakeGpu(monkeypatch)
    monkeypatch.setattr(torch, "full", lambda *_, **__: gpu)
    rates = PassRates([Size("bfloat16", power)], device=torch.device("cuda"))
    rates.measure()
    assert rates.seconds == {Size("bfloat16", power): [2**-10]}
    assert gpu.calls == CALLS_ON_A_GPU
