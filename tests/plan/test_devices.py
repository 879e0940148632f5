"""Machines are read as people write them."""

import os
from pathlib import Path

import pytest

from lrc.errors import ConfigError
from lrc.plan import devices
from lrc.plan.devices import GIB, parse_machine, usual_machines


def test_a_machine_is_a_count_and_a_type() -> None:
    machine = parse_machine("8xH100")
    assert (machine.count, machine.title) == (8, "8 x H100 80 GB")
    assert machine.device.flops_per_second == 989.4e12
    assert 0.9 * 79 * GIB < machine.usable_bytes < 79.1 * GIB
    assert parse_machine("h200").count == 1


def test_a_size_of_memory_alone_has_no_speed() -> None:
    machine = parse_machine("4x24GB")
    assert machine.count == 4
    assert machine.device.flops_per_second is None
    assert 0.85 * 24 * GIB < machine.usable_bytes < 24 * GIB


def test_the_cpu_has_this_machines_memory() -> None:
    machine = parse_machine("cpu")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.device.memory_bytes <= total  # a container's limit may be below it
    assert machine.usable_bytes < total


@pytest.mark.parametrize("text", ["", "8x", "0xh100", "h1000", "2xcpu", "8 h100", "gb"])
def test_what_is_no_machine_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must look like 8xh100, cpu or 24GB"):
        parse_machine(text)


def test_usual_machines_go_from_this_cpu_to_eight_gpus() -> None:
    titles = [machine.title for machine in usual_machines()]
    assert titles[0].startswith("1 x this CPU")
    assert "8 x H100 80 GB" in titles


@pytest.mark.parametrize(("written", "limited"), [("1073741824\n", True), ("max\n", False), (None, False)])
def test_a_containers_limit_is_this_machines_memory(
    tmp_path: Path, written: str | None, limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "memory.max"
    if written is not None:
        path.write_text(written)
    monkeypatch.setattr(devices, "CONTAINER_LIMITS", (tmp_path / "absent", path))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3, 5})
    found = devices.this_cpu()
    assert (found.memory_gib == 1.0) == limited
    assert "3 cores" in found.title
