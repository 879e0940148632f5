"""Memory of a step: the most bytes above what is there before it, and the bytes that wait for the backward pass.

On a GPU the caching allocator keeps the peak. On a CPU torch's profiler hears of every allocation and release of the
CPU allocator, also of those inside an operation, and a running sum of them is exact for all tensors and work buffers;
what a library takes by its own `malloc` (oneDNN's packed copies of operands) it does not see, nor that something dies
which was there before: a step that frees such memory early gets no credit for it.
"""

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Measure the most bytes that `work` holds at once beyond those before it."""
    gc.collect()  # what dies meanwhile and was there before would count below zero
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    living: dict[int, int] = {}  # bytes by address: a release of what was there before has no entry
    now = peak = 0
    for address, size in _allocations(profiler):
        now += size if size > 0 else -living.pop(address, 0)
        if size > 0:
            living[address] = size
        peak = max(peak, now)
    return peak


def _allocations(profiler: Any) -> list[tuple[int, int]]:
    """Address and bytes of each allocation, negative for a release, in the order of time.

    The bytes of a release come from torch's table of addresses, which keeps what was allocated under an earlier profile
    and released after it: they say nothing of a block that was there before this profile.
    """
    found: list[tuple[int, int, int]] = []
    events = list(profiler.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return [(address, size) for _, address, size in sorted(found, key=lambda entry: entry[0])]


def kept_for_backward(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Sum the bytes of distinct storages that wait for the backward pass when `forward` returns, `weights` left out.

    These are what autograd holds, and all that was made in the forward pass and still lives: checkpointing holds
    tensors that autograd does not know of.
    """
    found = _Storages(weights)

    def pack(tensor: Tensor) -> Tensor:
        found.add(tensor)
        return tensor.detach()  # the tensor itself would make a cycle if it is its own node's output

    gc.collect()
    with saved_tensors_hooks(pack, lambda tensor: tensor), found:
        objective = forward()
    return found.living() - objective.untyped_storage().nbytes()


class _Storages(TorchDispatchMode):
    """Distinct storages that operations return, and others that are added."""

    def __init__(self, without: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._without = {id(tensor.untyped_storage()) for tensor in without}
        self._found: dict[int, tuple[weakref.ref[Any], int]] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self._without:
            self._found[id(storage)] = (weakref.ref(storage), storage.nbytes())

    def living(self) -> int:
        """Sum the bytes of those that still live."""
        return sum(size for reference, size in self._found.values() if reference() is not None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result
