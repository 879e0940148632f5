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
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


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
    now = peak = 0
    for size in _allocations(profiler):
        now += size
        peak = max(peak, now)
    return peak


def _allocations(profiler: Any) -> list[int]:
    """Bytes of each allocation, negative for a release, in the order of time."""
    events = profiler.profiler.kineto_results.events()
    found = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return [size for _, size in sorted(found, key=lambda pair: pair[0])]


def kept_for_backward(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Sum the bytes of distinct storages that autograd holds when `forward` returns, those of `weights` left out."""
    known = {id(tensor.untyped_storage()) for tensor in weights}
    saved: dict[int, tuple[weakref.ref[Any], int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in known:
            saved[id(storage)] = (weakref.ref(storage), storage.nbytes())
        return tensor.detach()  # the tensor itself would make a cycle if it is its own node's output

    gc.collect()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        objective = forward()
    alive = [size for reference, size in saved.values() if reference() is not None]
    del objective
    return sum(alive)
