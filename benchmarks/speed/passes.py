"""What a step costs beside its products: bytes that its other operations move, and calls of operations.

Norms, activations, softmaxes, casts and the optimiser have no FLOPs in the cost model; each is a pass over memory.
Bytes and calls are counted in a step as it runs. What a byte costs is read off one plain pass of every size that
occurs, in the caches or out of them; what a call costs, of Python and autograd, off a step of the shape `tiny`, which
is little else.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import lrc.models.short_attention  # noqa: F401  # registers an operation that is listed below
from benchmarks.speed.rates import gpu_seconds, repeat, timed

aten = torch.ops.aten
PRODUCTS = {
    *flop_registry,
    aten.addmm_,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
    torch.ops.lrc.attention_gradients,
}
"""Operations whose FLOPs are counted: torch's own list, and what it leaves out."""
UNTOUCHED = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten._unsafe_view,
}
"""Operations that touch no memory, beside those that torch calls views."""
CHOOSING = {aten.embedding, aten.index, aten.index_select, aten.gather}
"""Operations that read of their first operand no more than they return."""
ONLY_WRITTEN = {aten.copy_, aten.zero_, aten.fill_}
"""Operations that read nothing of their first operand, which they write."""
ONLY_ASKED = {aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full}
"""Operations that ask a tensor for its size and dtype alone."""
SMALLEST = 12
"""Passes of less than `2 ** SMALLEST` bytes cost what one of that size does: a call."""


@dataclass(frozen=True, order=True)
class Size:
    """Passes of `2 ** power` bytes and up to twice that, in one dtype."""

    dtype_name: str
    power: int

    @property
    def dtype(self) -> torch.dtype:
        """What the tensors hold."""
        found: torch.dtype = getattr(torch, self.dtype_name)
        return found


class Passes(TorchDispatchMode):
    """Count what the operations of a context move, without products, views and what touches nothing; and all calls."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.bytes: Counter[Size] = Counter()
        """Read and written, by size of the pass."""
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        packet = func.overloadpacket
        if packet not in PRODUCTS and packet not in UNTOUCHED and not func.is_view:
            self._add(func, args, kwargs or {}, result)
        return result

    def _add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        arguments, packet = func._schema.arguments, func.overloadpacket
        given = [*args, *(kwargs.get(argument.name) for argument in arguments[len(args) :])]
        read, written = [], list(_tensors(result))
        for value, argument in zip(given, arguments, strict=True):
            if not argument.is_out:
                read += _tensors(value)
            # the fused optimiser's gradients would be written if it scaled them
            if argument.is_write and not (packet == aten._fused_adamw_ and argument.name == "grads"):
                written += _tensors(value)
        read, written = _distinct(read), _distinct(written)
        if packet in CHOOSING:
            read = [*written, *read[1:]]
        elif packet in ONLY_WRITTEN:
            read = _distinct(_tensors(given[1:]))
        elif packet in ONLY_ASKED:
            read = []
        total = sum(map(_extent, (*read, *written)))
        if total:
            widest = max((*read, *written), key=_extent)
            name = str(widest.dtype if widest.is_floating_point() else torch.float32).removeprefix("torch.")
            self.bytes[Size(name, max(SMALLEST, total.bit_length() - 1))] += max(total, 2**SMALLEST)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    return list({(tensor.data_ptr(), tensor.shape): tensor for tensor in tensors}.values())


def _extent(tensor: Tensor) -> int:
    """Bytes that an operation meets of a tensor: of an expanded one what is stored."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def count_passes(step: Callable[[], object]) -> Passes:
    """Count in a step.

    Args:
        step: Eager; what a compiler fuses can't be seen.
    """
    with Passes() as counted:
        step()
    return counted


class PassRates:
    """Seconds of one plain pass of each size, one more a round: two tensors are multiplied into a third."""

    def __init__(self, sizes: Iterable[Size], *, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[Size, list[float]] = {size: [] for size in sizes}

    def measure(self) -> None:
        """Time every size once."""
        for size, times in self.seconds.items():
            values = 2**size.power // (3 * size.dtype.itemsize)
            left, right = (torch.full((values,), 0.5, dtype=size.dtype, device=self.device) for _ in range(2))
            a_pass = partial(mul, left, right)
            if self.device.type == "cuda":
                times.append(gpu_seconds(a_pass, self.device))
            else:
                repeats = max(1, min(200, 2**24 // 2**size.power))
                a_pass()  # warm
                times.append(timed(partial(repeat, a_pass, repeats), self.device) / repeats)

    def seconds_of(self, passes: Passes) -> float:
        """Price a step's passes, each byte at the rate of its size."""
        return sum(
            moved / 2**size.power * statistics.median(self.seconds[size]) for size, moved in passes.bytes.items()
        )
