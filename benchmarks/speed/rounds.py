"""Rounds: every way once a round, in turn, so that a slow minute of the machine hits all of them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.speed.memory import kept_for_backward, peak_bytes
from benchmarks.speed.rates import ProductRates, timed
from benchmarks.speed.ways import Bench, student_loss
from lrc.config import Checkpointing
from lrc.training.metrics import format_seconds

FLOOR, PLAIN, OURS = "floor", "plain", "ours"


@dataclass(kw_only=True)
class Way:
    """One way to do a step, and what was measured of it."""

    name: str
    accumulation: int = 1
    checkpointing: Checkpointing = "none"
    compiled: bool = False
    pieces: dict[str, Callable[[], object]]
    """What a step is made of, timed one by one and summed."""
    forward: Callable[[], Tensor] | None = None
    """Forward half of one micro-batch."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of each piece, one a round."""
    peak_bytes: int = 0
    kept_bytes: int | None = None

    @property
    def title(self) -> str:
        """The name with what sets it apart."""
        extra = [f"x{self.accumulation}"] if self.accumulation > 1 else []
        again = [] if self.checkpointing == "none" else [f"{self.checkpointing} checkpointing"]
        compiled = ["compiled"] if self.compiled else []
        return ", ".join([self.name, *extra, *again, *compiled])

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(map(sum, zip(*self.seconds.values(), strict=True)))


def list_ways(bench: Bench, accumulations: list[int], *, with_plain: bool, with_compiled: bool = False) -> list[Way]:
    """List the ways of one shape: ours for each accumulation, ours with checkpointing of each kind, plain, floor.

    Compiled, ours runs for each accumulation, and with layer checkpointing.
    """

    def ours(accumulation: int, checkpointing: Checkpointing = "none", compiled: bool = False) -> Way:
        return Way(
            name=OURS,
            accumulation=accumulation,
            checkpointing=checkpointing,
            compiled=compiled,
            pieces={"step": lambda: bench.ours(accumulation, checkpointing=checkpointing, compiled=compiled)},
            # compiled code does not run under the dispatch mode that counts what is kept
            forward=None if compiled else bench.ours_forward(checkpointing=checkpointing),
        )

    ways = [*map(ours, accumulations), ours(1, "selective"), ours(1, "layer")]
    if with_compiled:
        ways += [
            *(ours(accumulation, compiled=True) for accumulation in accumulations),
            ours(1, "layer", compiled=True),
        ]
    if with_plain:
        ways.append(Way(name=PLAIN, pieces={"step": bench.plain}, forward=bench.plain_forward))
    floor = Way(
        name=FLOOR,
        pieces={"teacher": bench.floor_teacher, "student": bench.floor_student},
        forward=lambda: student_loss(bench.student, bench.batches[0]),
    )
    return [*ways, floor]


def run_rounds(bench: Bench, ways: list[Way], rates: ProductRates, count: int, report: Callable[[str], None]) -> None:
    """Warm each way up, time all of them `count` times in turn, then measure the memory of each once.

    The plain formulation is warmed up first: it holds most, and freed memory is kept for the next step.
    """
    for way in sorted(ways, key=lambda way: way.name != PLAIN):
        warm = sum(timed(piece, bench.device) for piece in way.pieces.values())
        report(f"{bench.shape.name}: {way.title} warmed up, {warm:.1f} s")
    began = time.monotonic()
    for number in range(count):
        rates.measure()
        for way in ways:
            for name, piece in way.pieces.items():
                way.seconds.setdefault(name, []).append(timed(piece, bench.device))
        left = (time.monotonic() - began) / (number + 1) * (count - number - 1)
        took = ", ".join(f"{way.title} {sum(times[-1] for times in way.seconds.values()):.2f} s" for way in ways)
        report(f"{bench.shape.name}: round {number + 1} of {count}  ETA {format_seconds(left)}  {took}")
    for way in ways:
        way.peak_bytes = max(peak_bytes(piece, bench.device) for piece in way.pieces.values())
        if way.forward is not None:
            way.kept_bytes = kept_for_backward(way.forward, bench.weights())
