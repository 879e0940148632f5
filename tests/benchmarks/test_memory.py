"""The memory meters against allocations whose sizes are known."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.speed.memory import kept_for_backward, peak_bytes

CPU = torch.device("cpu")
MIB = 2**20
FLOATS = MIB // 4


def test_peak_is_the_most_that_lives_at_once() -> None:
    held = torch.zeros(8 * FLOATS)

    def work() -> None:
        first = torch.empty(4 * FLOATS)
        second = torch.empty(2 * FLOATS)
        del first
        third = torch.empty(3 * FLOATS)
        del second, third

    assert peak_bytes(work, CPU) == 6 * MIB
    assert held.numel() == 8 * FLOATS


def test_peak_sees_a_buffer_inside_an_operation_and_the_backward_pass() -> None:
    logits = torch.zeros(4, FLOATS, requires_grad=True)
    # log-softmax of 4 MiB is kept, the gradient of it is made beside it, and then that of the logits
    assert peak_bytes(lambda: torch.log_softmax(logits, 1).sum().backward(), CPU) >= 8 * MIB
    left, right = torch.zeros(512, 512).T, torch.zeros(512, 512)
    assert peak_bytes(lambda: torch.einsum("ij,kj->ik", left, right), CPU) >= MIB


def test_what_was_there_and_goes_makes_no_room() -> None:
    held = [torch.zeros(8 * FLOATS)]

    def work() -> None:
        held.clear()
        torch.empty(2 * FLOATS)

    assert peak_bytes(work, CPU) == 2 * MIB


def test_an_address_that_an_earlier_measurement_knew_makes_no_room() -> None:
    def blocks() -> list[Tensor]:
        return [torch.empty(FLOATS // 16) for _ in range(60)]

    held: list[Tensor] = []
    assert peak_bytes(lambda: held.extend(blocks()), CPU) == 60 * MIB // 16
    known = {block.data_ptr() for block in held}
    held.clear()  # torch's profiler does not hear of these releases
    held.extend(blocks())
    assert known & {block.data_ptr() for block in held}

    def work() -> None:
        held.clear()
        torch.empty(2 * FLOATS)

    assert peak_bytes(work, CPU) == 2 * MIB


def test_kept_bytes_are_distinct_storages_without_weights() -> None:
    weight = torch.ones(FLOATS, requires_grad=True)
    inputs = torch.ones(FLOATS)

    def forward() -> Tensor:
        one = inputs * weight  # saves `inputs` and the weight
        two = one.sigmoid()  # saves its output
        three = two.view(2, -1) * two.view(2, -1)  # the same storage again
        return three.sum()

    assert kept_for_backward(forward, [weight]) == 2 * MIB
    assert kept_for_backward(forward, [weight, inputs]) == MIB


def test_checkpointing_keeps_its_inputs_only() -> None:
    weight = torch.ones(FLOATS, requires_grad=True)
    inputs = torch.ones(FLOATS)

    def region(value: Tensor) -> Tensor:
        return (value * weight).sigmoid().tanh().exp()

    def kept(forward: Tensor) -> Tensor:
        return forward.sum()

    assert kept_for_backward(lambda: kept(region(inputs)), [weight]) == 4 * MIB
    assert kept_for_backward(lambda: kept(checkpoint(region, inputs, use_reentrant=False)), [weight]) <= MIB
