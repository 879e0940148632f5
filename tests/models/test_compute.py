"""Device and dtype: what is asked for, what `auto` finds, and what a machine without a GPU refuses."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from lrc.errors import ConfigError
from lrc.models import compute
from lrc.models.compute import choose_device, choose_dtype, dtype_name

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def with_gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


def with_seconds(monkeypatch: pytest.MonkeyPatch, seconds: dict[torch.dtype, float]) -> None:
    """Let a matrix product take these seconds; a dtype that is not listed must not be timed."""
    for name in ("_core_seconds", "_product_seconds"):
        monkeypatch.setattr(compute, name, lambda dtype: seconds[dtype])


@pytest.mark.parametrize(
    ("wanted", "has_gpu", "expected"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_device_is_the_one_asked_for_or_a_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has_gpu: bool, expected: str
) -> None:
    with_gpu(monkeypatch, has_gpu)
    assert choose_device(wanted) == torch.device(expected)


def test_a_gpu_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, False)
    with pytest.raises(ConfigError, match=r"train\.device is cuda, but torch sees no GPU here\. Use auto or cpu\."):
        choose_device("cuda")


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_dtype_that_is_asked_for_is_taken_without_timing(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: torch.device
) -> None:
    with_seconds(monkeypatch, {})
    assert choose_dtype(dtype_name(dtype), device) == dtype


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [(1.0, 3.0, torch.float32), (3.0, 1.0, torch.bfloat16), (2.0, 2.0, torch.float32)],
    ids=["float32 is faster", "bfloat16 is faster", "a tie keeps the exact one"],
)
def test_auto_takes_the_faster_dtype_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, expected: torch.dtype
) -> None:
    with_seconds(monkeypatch, {torch.float32: float32, torch.bfloat16: bfloat16})
    assert choose_dtype("auto", CPU) == expected


def test_a_busy_moment_does_not_settle_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = {torch.float32: iter([3.0] * 100), torch.bfloat16: iter([9.0, 1.0, *[9.0] * 100])}
    monkeypatch.setattr(compute, "_core_seconds", lambda dtype: next(readings[dtype]))
    assert choose_dtype("auto", CPU) == torch.bfloat16


@pytest.mark.parametrize(("has_units", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_on_a_gpu_that_does_not_emulate_it(
    monkeypatch: pytest.MonkeyPatch, has_units: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_units
    )
    with_seconds(monkeypatch, {})
    assert choose_dtype("auto", CUDA) == expected


class Products(TorchFunctionMode):
    """Notes the dtype of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul):
            self.dtypes.append(result.dtype)
        return result


def test_a_dtype_s_time_is_the_best_of_four_products_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0.0, 7.0, 10.0, 12.0, 20.0, 29.0, 30.0, 34.0, 40.0, 41.0, *range(50, 100)])
    monkeypatch.setattr(compute, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    with Products() as products:
        assert compute._product_seconds(torch.bfloat16) == 2.0
    assert products.dtypes == [torch.bfloat16] * 4


def test_a_dtype_is_chosen_by_the_processor_time_of_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a busy process the products of all threads take 4 to 8 ms of 0.3 and of 1.1 alike."""
    clock, threads = {"now": 0.0}, torch.get_num_threads()
    seen: list[int] = []

    def thread_time() -> float:
        seen.append(torch.get_num_threads())
        clock["now"] += 1.0
        return clock["now"]

    def fail() -> float:
        raise AssertionError("a wall clock")

    monkeypatch.setattr(compute, "time", SimpleNamespace(thread_time=thread_time, perf_counter=fail))
    torch.set_num_threads(2)
    try:
        choose_dtype("auto", CPU)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_rate_is_the_product_s_operations_over_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with_seconds(monkeypatch, {torch.float32: 0.5})
    assert compute.products_flops_per_second(torch.float32) == 2 * 128 * 512 * 512 / 0.5


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.float16, "float16")]
)
def test_a_dtype_is_named_without_its_library(dtype: torch.dtype, name: str) -> None:
    assert dtype_name(dtype) == name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_blocks_are_kept_for_the_next_tensor() -> None:
    script = """
import resource, sys, torch
from lrc.models.compute import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(2**24).sum()  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    pages = {}
    for name in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, check=True)
        pages[name] = int(done.stdout)
    assert pages["kept"] < pages["given back"] / 2  # handed out anew


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute.ctypes, "CDLL", lambda name: object())
    assert not compute.keep_freed_memory()
