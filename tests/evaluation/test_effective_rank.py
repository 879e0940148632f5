"""Effective rank of streams with known spectra."""

import pytest
import torch
from torch import nn

from lrc.errors import NumericsError
from lrc.evaluation.effective_rank import stream_ranks


class Fixed(nn.Module):
    """A layer whose output is what it was told."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self) -> torch.Tensor:
        return self.states


def test_equal_directions_count_fully_and_scale_does_not() -> None:
    states = torch.eye(4).repeat(5, 1)
    states[::2] *= 1000
    line = torch.ones(20, 4)
    layers = [Fixed(states), Fixed(line)]
    with stream_ranks(layers) as ranks:
        for layer in layers:
            layer()
    assert ranks == [pytest.approx(4, rel=1e-4), pytest.approx(1, abs=1e-2)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_states_that_are_not_finite_have_no_rank(value: float) -> None:
    states = torch.eye(4)
    states[2, 1] = value
    layers = [Fixed(torch.eye(4)), Fixed(states)]

    def watch() -> None:
        with stream_ranks(layers):
            for layer in layers:
                layer()

    with pytest.raises(NumericsError, match="after layer 1"):
        watch()
