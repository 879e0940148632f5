"""Where a step's time goes: torch's profiler with the parts of the step marked, each operation counted for one part.

Forward operations belong to the innermost marked part that runs them; an operation of the backward pass belongs to the
part whose forward made its node (by autograd's sequence numbers, which each thread counts for itself). The clone terms'
backward is theirs, the head's is the head's, a merge's is the merges'. What activation checkpointing runs again counts
for the part that it is of.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import lrc.models.pair as pair_module
import lrc.models.part as part_module
from benchmarks.speed.ways import Bench
from lrc.models.pair import PairLayer
from lrc.models.pair_head import PairHead
from lrc.models.pair_model import PairModel
from lrc.models.step_weights import StepWeights
from lrc.training.engine import FullEngine

TEACHER, FORWARD, BACKWARD = "teacher", "student forward", "student backward"
MERGES, HEAD, CLONE, OPTIMISER = "merges", "head", "clone terms", "optimiser"
STEP_PARTS = (TEACHER, FORWARD, BACKWARD, MERGES, HEAD, CLONE, OPTIMISER)
MARKED: tuple[tuple[Any, str, str], ...] = (
    (PairModel, "forward", FORWARD),
    (part_module.ProjectedPart, "student_tensors", MERGES),
    (part_module, "merge", MERGES),
    (pair_module, "merge", MERGES),
    (StepWeights, "form", MERGES),
    (StepWeights, "pull_back", MERGES),
    (PairLayer, "_error", CLONE),
    (PairHead, "forward", HEAD),
    (FullEngine, "backward", BACKWARD),
    (FullEngine, "update", OPTIMISER),
)
"""What runs each part, beside the teacher's modules: a class or module, the function's name in it, the part."""
_PREFIX = "part: "
_NODE = "autograd::engine::evaluate_function"
_Made = dict[tuple[int, int], str]
"""Sequence number and thread of the operation that made a node -> the part that it is of."""


@contextmanager
def marked_parts(bench: Bench) -> Iterator[None]:
    """Mark the parts of the package's step while the context is open."""
    with ExitStack() as stack:
        for owner, name, part in MARKED:
            stack.enter_context(patch.object(owner, name, _marked(getattr(owner, name), part)))
        for projected in bench.pair.parts():
            teacher = projected.teacher
            stack.enter_context(patch.object(teacher, "forward", _marked(teacher.forward, TEACHER)))
        yield


def _marked(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    def run(*arguments: Any, **keywords: Any) -> Any:
        with record_function(_PREFIX + part):
            return function(*arguments, **keywords)

    return run


def profile_parts(bench: Bench, step: Callable[[], object], trace: Path | None) -> dict[str, float]:
    """Run one step under the profiler; returns seconds by part, those of the device if it is a GPU.

    Args:
        bench: Whose pair the step trains.
        step: One step of ours.
        trace: File for the chrome trace, or None.
    """
    with marked_parts(bench):
        profiler = profiled(step, bench.device, trace)
    return seconds_by_part(list(profiler.events() or []), is_gpu=bench.device.type == "cuda")


def profiled(step: Callable[[], object], device: torch.device, trace: Path | None) -> profile:
    """Run one step under the profiler, and write its chrome trace if there is a file for it."""
    is_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        if is_gpu:
            torch.cuda.synchronize(device)
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    return profiler


def seconds_by_part(events: list[Any], *, is_gpu: bool) -> dict[str, float]:
    """Sum the profiler's events by part, each event's own time without its children's."""
    made_by: _Made = {}
    for event in sorted(events, key=lambda event: event.time_range.start):
        # the last operation with a number is the one that made the node; those before it made none
        if event.sequence_nr >= 0 and not _is_node(event) and (part := _enclosing(event, {})):
            made_by[event.sequence_nr, event.thread] = part
    found = dict.fromkeys(STEP_PARTS, 0.0)
    for event in events:
        part = _enclosing(event, made_by)
        own = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        if part is not None and str(event.device_type) == "DeviceType.CPU":
            found[part] += own / 1e6
    return found


def _is_node(event: Any) -> bool:
    return event.name.startswith(_NODE) or (event.cpu_parent is not None and event.cpu_parent.name.startswith(_NODE))


def _enclosing(event: Any, made_by: _Made) -> str | None:
    """The part of the innermost mark or backward node around an event, itself included."""
    is_backward = False
    while event is not None:
        if event.name.startswith(_PREFIX):
            return str(event.name.removeprefix(_PREFIX))
        if made_by and event.name.startswith(_NODE):
            is_backward = True
            if part := made_by.get((event.sequence_nr, event.fwd_thread)):
                return BACKWARD if part == FORWARD else part
        event = event.cpu_parent
    return BACKWARD if is_backward else None  # a GPU's backward pass runs in a thread without marks


def parts_table(shape: str, found: dict[str, dict[str, float]]) -> str:
    """Write seconds and shares by part as a Markdown table, a column a way."""
    lines = [
        f"{shape}: where the time of ours goes (profiled, so slower than the table above)",
        "",
        f"| part | {' | '.join(f'{way}, s | share' for way in found)} |",
        f"|{' --- |' * (1 + 2 * len(found))}",
    ]
    for part in STEP_PARTS:
        cells = [f"{parts[part]:.3g} | {parts[part] / sum(parts.values()):.1%}" for parts in found.values()]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)
