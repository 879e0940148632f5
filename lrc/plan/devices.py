"""Devices: memory and peak speed of what people train on, and machines of several of them."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lrc.errors import ConfigError, did_you_mean

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class DeviceType:
    """One accelerator, or a CPU with its RAM."""

    name: str
    title: str
    memory_gib: float
    """What the driver gives out, not the name on the box."""
    flops_per_second: float | None
    """Peak of dense bfloat16 products with float32 sums, as the maker states it; None: not known."""
    is_cpu: bool = False

    @property
    def memory_bytes(self) -> int:
        """`memory_gib` in bytes."""
        return int(self.memory_gib * GIB)


DEVICE_TYPES = (
    DeviceType(name="rtx3090", title="RTX 3090 24 GB", memory_gib=23.6, flops_per_second=71e12),
    DeviceType(name="rtx4090", title="RTX 4090 24 GB", memory_gib=23.5, flops_per_second=165.2e12),
    DeviceType(name="l40s", title="L40S 48 GB", memory_gib=44.4, flops_per_second=362e12),
    DeviceType(name="a100-40", title="A100 40 GB", memory_gib=39.4, flops_per_second=312e12),
    DeviceType(name="a100-80", title="A100 80 GB", memory_gib=79.1, flops_per_second=312e12),
    DeviceType(name="h800", title="H800 80 GB", memory_gib=79.1, flops_per_second=989.4e12),
    DeviceType(name="h100", title="H100 80 GB", memory_gib=79.1, flops_per_second=989.4e12),
    DeviceType(name="h200", title="H200 141 GB", memory_gib=139.8, flops_per_second=989.4e12),
)
RESERVE = 0.08
"""Share of a GPU's memory that a plan leaves alone: the CUDA context, library workspaces, fragmentation."""
CPU_RESERVE = 0.15
"""Share of the RAM left to the system and to Python with its libraries."""
CPU_FLOPS_PER_CORE = 85e9
"""float32 products of one AVX-512 core, measured on a cloud machine; a plan runs none."""
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MACHINE = re.compile(r"(?:(\d+)\s*x\s*)?(?:(\d+(?:\.\d+)?)\s*gb|([a-z][\w-]*))", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """So many devices of a type."""

    device: DeviceType
    count: int

    @property
    def title(self) -> str:
        """`8 x H100 80 GB`."""
        return f"{self.count} x {self.device.title}"

    @property
    def usable_bytes(self) -> float:
        """Memory of one device that a plan may fill."""
        return self.device.memory_bytes * (1 - (CPU_RESERVE if self.device.is_cpu else RESERVE))


def this_cpu() -> DeviceType:
    """Describe the CPU that runs this, with its RAM."""
    memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _container_bytes())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return DeviceType(
        name="cpu",
        title=f"this CPU, {cores} cores, {memory / GIB:.0f} GiB",
        memory_gib=memory / GIB,
        flops_per_second=cores * CPU_FLOPS_PER_CORE,
        is_cpu=True,
    )


def _container_bytes() -> int:
    """Return the memory that a container may use (cgroup v2, v1); more than any machine has if nothing says so."""
    for path in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):
            return int(path.read_text())  # `max` where there is no limit
    return 2**63


def parse_machine(text: str) -> Machine:
    """Read `8xh100`, `cpu`, or a size of memory alone, `24GB`.

    Raises:
        ConfigError: It is none of them.
    """
    match = _MACHINE.fullmatch(text.strip())
    types = {device.name: device for device in DEVICE_TYPES}
    if match is not None:
        count, name = int(match[1] or 1), (match[3] or "").lower()
        if match[2] and count > 0:
            size = float(match[2])
            plain = DeviceType(name="memory", title=f"{size:g} GB", memory_gib=size * 0.98, flops_per_second=None)
            return Machine(device=plain, count=count)
        if name == "cpu" and count == 1:
            return Machine(device=this_cpu(), count=1)
        if name in types and count > 0:
            return Machine(device=types[name], count=count)
    hint = did_you_mean(text.lower().rpartition("x")[2], list(types))
    raise ConfigError(
        f"A machine must look like 8xh100, cpu or 24GB, found {text!r}.{hint} Device types: {', '.join(types)}, cpu."
    )


def usual_machines() -> tuple[Machine, ...]:
    """List the machines that every plan looks at."""
    names = ("cpu", "rtx4090", "a100-40", "a100-80", "h100", "h200", "8xa100-80", "8xh100", "8xh200")
    return tuple(parse_machine(name) for name in names)
