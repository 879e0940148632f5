"""A piece of a layer, run from a stage's input to its writer."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lrc.clone.sites import Stage
from lrc.errors import ConfigError
from lrc.models.stage_call import StageCall, call_module, watch_call, writer_input

STAGE = Stage(kind="mlp", readers=("mlp.up",), writers=("mlp.down",), norm=None, post_norm=None)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, factor: float, *, stream: Tensor, skips: bool = False) -> Tensor:
        inner = factor * self.up(stream).tanh()
        return inner if skips else self.down(inner)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, stream: Tensor) -> Tensor:
        return self.mlp(2.0, stream=stream)


def test_a_call_is_seen_with_the_place_of_the_readers_input_and_run_again_with_another() -> None:
    layer, stream, other = Layer(), torch.randn(3, 4), torch.randn(5, 4)
    calls: list[StageCall] = []
    handles = watch_call(layer, STAGE, calls.append)
    layer(stream)
    for handle in handles:
        handle.remove()
    (call,) = calls
    assert call.arguments == (2.0,)
    assert call.slot == "stream"
    tensors = {name: torch.randn(value.shape) for name, value in layer.named_parameters()}
    found = writer_input(layer, STAGE, call, tensors, other)
    expected = 2 * (other @ tensors["mlp.up.weight"].T + tensors["mlp.up.bias"]).tanh()
    torch.testing.assert_close(found, expected)
    assert not layer.mlp.down._forward_pre_hooks
    whole = call_module(layer, "mlp", tensors, 2.0, stream=other)
    torch.testing.assert_close(whole, functional_call(layer, tensors, (other,)))


def test_an_input_that_is_made_inside_is_no_call() -> None:
    layer = Layer()
    layer.mlp.up.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    calls: list[StageCall] = []
    handles = watch_call(layer, STAGE, calls.append)
    layer(torch.randn(3, 4))
    assert calls == []
    assert len(handles) == 2


def test_a_writer_that_does_not_run_is_an_error() -> None:
    layer = Layer()
    call = StageCall((2.0,), {"stream": torch.zeros(1, 4), "skips": True}, "stream")
    with pytest.raises(ConfigError, match=r"mlp\.down did not run"):
        writer_input(layer, STAGE, call, dict(layer.named_parameters()), torch.zeros(2, 4))
    assert not layer.mlp.down._forward_pre_hooks
