"""Live bytes follow storages from birth to death."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lrc.plan.live_bytes import LiveBytes


def test_a_storage_counts_once_while_it_lives_and_its_highest_point_is_kept() -> None:
    outside = torch.ones(100)
    with LiveBytes([outside]) as live:
        made = outside * 2
        view = made.view(10, 10).T
        assert live.now == 400
        assert outside.view(10, 10).shape == (10, 10)
        assert live.now == 400
        other = made + 1
        del other
        assert live.mark() == (400, 800)
        del made
        assert live.now == 400
        del view
        assert live.mark() == (0, 400)


def test_fake_tensors_count_like_real_ones() -> None:
    with FakeTensorMode():
        outside = torch.empty(10**9, 1000)
        with LiveBytes([outside]) as live:
            made = outside + 1
            assert live.now == 4 * 10**12
            del made
            assert live.now == 0


def test_what_autograd_keeps_is_alive_until_the_backward_pass() -> None:
    weight = torch.ones(10, requires_grad=True)
    with LiveBytes([weight]) as live:
        result = (weight * 2).exp().sum()
        assert live.now == 40 + 4
        result.backward()
        del result
        assert live.now == 40
        assert weight.grad is not None
