"""A GPU for tests on machines without one: `device.cpp`, built once and loaded before torch, and torch.cuda told of it.

Tensors of type `cuda` lie in main memory and their operations run as the CPU's, but none may mix devices. So code runs
as it would on one GPU up to the kernels themselves: no other thing of CUDA is emulated, and nothing about speed.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("device.cpp")
LIBRARY = "LRC_EMULATED_GPU"


def compiler() -> str | None:
    """Return a C++ compiler, or None."""
    return shutil.which("g++") or shutil.which("c++")


def torch_folder() -> Path:
    """Return where torch lies, without importing it."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def build(folder: Path) -> Path:
    """Compile the device into a shared library; half a minute."""
    found, torch, library = compiler(), torch_folder(), folder / "device.so"
    assert found is not None
    include = torch / "include"
    paths = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}", f"-L{torch / 'lib'}"]
    command = [found, "-shared", "-fPIC", "-O0", "-std=c++20", *paths, str(SOURCE), "-lc10", "-ltorch_cpu"]
    subprocess.run([*command, "-o", str(library)], check=True, capture_output=True, text=True)
    return library


def run_on(library: Path, script: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run Python with the device; the script calls `install` before all else."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(torch_folder() / "lib"),
        "PYTHONPATH": str(Path.cwd()),
        "OMP_NUM_THREADS": "1",
        LIBRARY: str(library),
    }
    return subprocess.run([sys.executable, *script], env=environment, capture_output=True, text=True, timeout=600)


def _asked(what: str) -> Any:
    """Return a function of the device's library that takes nothing and returns a number."""
    function: Any = getattr(ctypes.CDLL(os.environ[LIBRARY]), what)
    function.restype = ctypes.c_int64
    return function


def host_waits() -> int:
    """Count how often the host has waited for the device so far."""
    return int(_asked("host_waits")())


class _Event:
    """Of a device that is never behind."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, stream: Any = None) -> "_Event":
        return self

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream:
    """The only one."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def record_event(self, event: Any = None) -> _Event:
        return event or _Event()

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


def install() -> None:
    """Tell torch.cuda of the device."""
    import torch

    memory = 8 << 30
    properties = SimpleNamespace(name="emulated", total_memory=memory, major=9, minor=0, multi_processor_count=1)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "emulated",
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "mem_get_info": (memory, memory),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed_all", "manual_seed", "_lazy_init"):
        setattr(torch.cuda, name, lambda *_, **__: None)
    torch.cuda.init = lambda: None  # type: ignore[assignment]
    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, lambda *_, name=name, **__: _asked(name)())
    for module in (torch.cuda, torch.cuda.random):  # its random numbers are the CPU's
        module.get_rng_state = lambda *_: torch.get_rng_state()  # type: ignore[assignment]
        module.set_rng_state = lambda state, *_: torch.set_rng_state(state)  # type: ignore[assignment]
    stream = _Stream()
    replaced: dict[str, Any] = {
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "stream": lambda *_: stream,
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    nothing: Any = lambda *_: None  # noqa: E731
    torch.Tensor.record_stream = nothing  # type: ignore[method-assign]  # it takes no other class of streams
