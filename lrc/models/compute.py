"""Where and in what dtype to compute: what the recipe says, or what is the faster here."""

import ctypes
import sys
import time
from collections.abc import Callable

import torch

from lrc.errors import ConfigError

PRODUCT_ROWS, PRODUCT_SIZE = 128, 512
"""Rows and width of the measured product: small enough to cost nothing, large enough to use every core."""

RATE_ROUNDS = 25
"""Times four products that a rate is the best of."""
DTYPE_ROUNDS = 2
"""The same when a dtype is chosen, by every verb, on one core."""


MALLOC_SETTINGS = {-1: 2**31 - 1, -3: 2**30}
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, bytes (malloc.h)."""


def keep_freed_memory() -> bool:
    """Let glibc keep large freed blocks for the next tensors of their size; returns whether it does.

    By default it gives each one above 32 MiB back to the system at once, and a training step on a CPU, which makes the
    same large tensors over and over, spends up to half its time on having the pages handed out and cleared again.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(key, value) == 1 for key, value in MALLOC_SETTINGS.items())


def choose_device(wanted: str, *, setting: str = "train.device") -> torch.device:
    """Return the device; `auto` takes a GPU if there is one.

    Args:
        wanted: `auto`, `cpu` or `cuda`.
        setting: What an error calls it.

    Raises:
        ConfigError: `cuda` is asked for on a machine without.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{setting} is cuda, but torch sees no GPU here. Use auto or cpu.")
    use_gpu = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype; `auto` takes bfloat16 where its matrix product is the faster.

    On a GPU that is where it has units for it: an older one (V100, T4) emulates bfloat16 and is slower than in float32.
    On a CPU both are measured in turn, on one core in its own time: beside a busy process threads wait for each other
    longer than either product takes, and that must not settle a whole run's dtype.
    """
    if wanted == "float32":
        return torch.float32
    if wanted == "bfloat16":
        return torch.bfloat16
    if device.type != "cpu":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_units else torch.float32
    rounds = [{dtype: _core_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)} for _ in range(DTYPE_ROUNDS)]
    return min(rounds[0], key=lambda dtype: min(seconds[dtype] for seconds in rounds))


def products_flops_per_second(dtype: torch.dtype) -> float:
    """Measure this CPU's rate at matrix products of `dtype`, FLOP/s: the best of some, for others may be busy here."""
    return 2 * PRODUCT_ROWS * PRODUCT_SIZE**2 / min(_product_seconds(dtype) for _ in range(RATE_ROUNDS))


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _core_seconds(dtype: torch.dtype) -> float:
    """Processor seconds that one core takes for the product; what other processes take of it is not counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _product_seconds(dtype, time.thread_time)
    finally:
        torch.set_num_threads(threads)


def _product_seconds(dtype: torch.dtype, clock: Callable[[], float] | None = None) -> float:
    clock = clock or time.perf_counter
    left = torch.ones(PRODUCT_ROWS, PRODUCT_SIZE, dtype=dtype)
    right = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype)
    times = []
    for _ in range(4):
        began = clock()
        left @ right
        times.append(clock() - began)
    return min(times)
