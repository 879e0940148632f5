"""Time by part: every part of the step gets some, a backward operation goes to the part that made its node."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.speed.parts import (
    BACKWARD,
    CLONE,
    FORWARD,
    HEAD,
    MERGES,
    STEP_PARTS,
    TEACHER,
    marked_parts,
    parts_table,
    profile_parts,
    seconds_by_part,
)
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.ways import Bench
from lrc.models.pair_head import PairHead

CPU = torch.device("cpu")


def test_every_part_of_our_step_gets_time_and_the_marks_go_again(tmp_path: Path) -> None:
    bench = Bench(SHAPES["tiny"], dtype=torch.float32, device=CPU, most_batches=1)
    before = PairHead.forward
    found = profile_parts(bench, lambda: bench.ours(1), tmp_path / "trace.json")
    assert PairHead.forward is before
    assert "forward" not in vars(bench.pair.layers[0].teacher)
    assert tuple(found) == STEP_PARTS
    assert all(seconds > 0 for seconds in found.values()), found
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert f"part: {HEAD}" in {event.get("name") for event in events}
    assert f"| {MERGES} |" in parts_table("tiny", {"ours": found})


def test_backward_time_goes_to_the_part_that_made_the_node() -> None:
    weight = torch.full((256, 256), 0.01, requires_grad=True)
    (weight @ weight).sum().backward()  # the first product of a process takes longer
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function(f"part: {FORWARD}"):
            small = (weight * 2).sum()
            with record_function(f"part: {CLONE}"):
                large = weight
                for _ in range(40):
                    large = large @ weight
            with record_function(f"part: {TEACHER}"), torch.no_grad():
                weight @ weight
        with record_function(f"part: {BACKWARD}"):
            (small + large.sum()).backward()
    found = seconds_by_part(list(profiler.events()), is_gpu=False)
    assert found[CLONE] > 10 * found[FORWARD] > 0
    assert found[CLONE] > 10 * found[TEACHER] > 0
    forward_only = sum(event.time_range.elapsed_us() for event in profiler.events() if event.name == f"part: {CLONE}")
    assert found[CLONE] > 1.3 * forward_only / 1e6  # two products backward for one forward
    assert found[BACKWARD] < found[CLONE] / 3


class FakeEvents:
    """The profiler's events, a second each, as they are recorded one after the other."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def add(self, name: str, *, thread: int, inside: Any = None, number: int = -1, made_in: int = 0) -> Any:
        event = SimpleNamespace(
            name=name,
            thread=thread,
            cpu_parent=inside,
            sequence_nr=number,
            fwd_thread=made_in,
            time_range=SimpleNamespace(start=len(self.all)),
            self_cpu_time_total=1e6,
            device_type="DeviceType.CPU",
        )
        self.all.append(event)
        return event


def test_operations_of_two_threads_share_numbers_but_no_nodes() -> None:
    """A layer that a GPU's autograd thread runs again counts its operations from the start, as the main thread did."""
    events, node, main, autograd = FakeEvents(), "autograd::engine::evaluate_function: MulBackward0", 1, 2
    for number, part in enumerate((CLONE, HEAD)):
        mark = events.add(f"part: {part}", thread=main)
        events.add("aten::mul", thread=main, inside=mark, number=number)
    again = events.add(node, thread=autograd, number=7, made_in=main)
    mark = events.add(f"part: {MERGES}", thread=autograd, inside=again)
    events.add("aten::mm", thread=autograd, inside=mark, number=0)
    for made_in, number in ((autograd, 0), (main, 0), (main, 0), (main, 1)):
        made = events.add(node, thread=autograd, number=number, made_in=made_in)
        events.add("MulBackward0", thread=autograd, inside=made, number=number, made_in=made_in)
    found = seconds_by_part(events.all, is_gpu=False)
    assert (found[CLONE], found[HEAD], found[MERGES], found[BACKWARD]) == (2 + 4, 2 + 2, 2 + 2, 1)


def test_a_part_that_is_renamed_in_the_package_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(SHAPES["tiny"], dtype=torch.float32, device=CPU, most_batches=1)
    monkeypatch.setattr("benchmarks.speed.parts.MARKED", ((PairHead, "no_such", HEAD),))
    with pytest.raises(AttributeError), marked_parts(bench):
        pass
