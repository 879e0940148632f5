"""One shape measured: every way's line with its ratios, as plain values for the JSON and as a table."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.parts import profile_parts, profiled
from benchmarks.speed.rates import Prediction, ProductRates, part_products, predict, predict_floor, shape_sizes
from benchmarks.speed.rounds import FLOOR, OURS, PLAIN, Way, list_ways, run_rounds
from benchmarks.speed.shapes import Shape
from benchmarks.speed.ways import Bench
from lrc.errors import ConfigError
from lrc.plan.sizes import Sizes

MIB = 2**20
PLAIN_LOGITS = 12
"""Float32 tensors as large as one model's logits whose room the plain formulation needs: eight at once, and layers."""
COLUMNS = (
    "way",
    "s/step",
    "tokens/s",
    "GFLOP/s",
    "of product rate",
    "measured / predicted",
    "time / floor",
    "speed / plain",
    "peak MiB",
    "peak / plain",
    "kept MiB",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure."""

    dtype: torch.dtype
    device: torch.device
    accumulations: list[int]
    rounds: int
    with_plain: bool
    optimizer: str
    with_compiled: bool = False
    only: str = ""
    """Words in the titles of the ways that are measured; the floor always is."""
    traces: Path | None = None
    """Where profiles go; None: no profile. Of compiled layers there is a trace alone, without times by part."""


def measure_shape(shape: Shape, settings: Settings, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure all ways at one shape; returns what goes into the JSON."""
    bench = Bench(
        shape,
        dtype=settings.dtype,
        device=settings.device,
        most_batches=max(settings.accumulations),
        optimizer=settings.optimizer,
    )
    with_plain = settings.with_plain
    if with_plain and (lacking := lacking_for_plain(shape, settings.device)):
        report(f"{shape.name}: the plain formulation is left out: {lacking}")
        with_plain = False
    ways = _chosen(
        list_ways(bench, settings.accumulations, with_plain=with_plain, with_compiled=settings.with_compiled),
        settings.only,
    )
    sizes = shape_sizes(shape)
    rates = ProductRates(part_products(sizes, shape), dtype=settings.dtype, device=settings.device)
    run_rounds(bench, ways, rates, settings.rounds, report)
    parts = {}
    if settings.traces is not None:
        for way in (way for way in ways if way.name == OURS):
            trace = settings.traces / f"{shape.name}-{way.title.replace(', ', '-')}.json"
            if way.compiled:  # without marks: layers that get some inside would be compiled anew
                profiled(way.pieces["step"], settings.device, trace)
            else:
                parts[way.title] = profile_parts(bench, way.pieces["step"], trace)
            report(f"{shape.name}: trace in {trace}")
    return {
        "shape": asdict(shape),
        "teacher_parameters": sizes.teacher_parameters,
        "student_parameters": sizes.student_parameters,
        "trained_parameters": sizes.trained_parameters,
        "product_rates": {part: rates.part_rate(part) for part in rates.products},
        "parts": parts,
        "ways": [way_facts(way, ways, shape, sizes, bench, rates) for way in ways],
    }


def _chosen(ways: list[Way], words: str) -> list[Way]:
    """Return the ways whose title holds the words, and the floor.

    Raises:
        ConfigError: No title holds them.
    """
    found = [way for way in ways if words in way.title or way.name == FLOOR]
    if len(found) == 1 and words not in FLOOR:
        raise ConfigError(f"No way has {words!r} in its title. There are: {'; '.join(way.title for way in ways)}.")
    return found


def lacking_for_plain(shape: Shape, device: torch.device) -> str | None:
    """Say why the plain formulation would not fit into memory, or None: the system would end the process instead."""
    needed = PLAIN_LOGITS * 4 * shape.tokens * shape.vocabulary
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = 1024 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    if needed < 0.9 * free:
        return None
    return f"its logits need about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free; try a smaller --batch"


def way_facts(
    way: Way, ways: list[Way], shape: Shape, sizes: Sizes, bench: Bench, rates: ProductRates
) -> dict[str, Any]:
    """Collect one way's line; ratios are of times a token."""
    needed, done = _predictions(way, shape, sizes, bench, rates)
    facts = {
        "way": way.name,
        "title": way.title,
        "accumulation": way.accumulation,
        "checkpointing": way.checkpointing,
        "compiled": way.compiled,
        "tokens": shape.tokens * way.accumulation,
        "seconds": way.seconds,
        "median_seconds": way.median,
        "tokens_per_second": shape.tokens * way.accumulation / way.median,
        "model_flops": needed.total_flops,
        "model_flops_per_second": needed.total_flops / way.median,
        "product_rate_share": needed.total_seconds / way.median,
        "predicted_seconds": None if done is None else done.seconds,
        "measured_over_predicted": None if done is None else way.median / done.total_seconds,
        "peak_bytes": way.peak_bytes,
        "kept_bytes": way.kept_bytes,
    }
    named = {other.name: other for other in ways}
    if way.name != FLOOR:
        facts["time_over_floor"] = _per_token(way) / _per_token(named[FLOOR])
    if PLAIN in named and way.name not in (FLOOR, PLAIN):
        facts["speed_over_plain"] = _per_token(named[PLAIN]) / _per_token(way)
        facts["peak_over_plain"] = way.peak_bytes / named[PLAIN].peak_bytes
    return facts


def _per_token(way: Way) -> float:
    """Seconds of one micro-batch, all of which have the same tokens."""
    return way.median / way.accumulation


def _predictions(
    way: Way, shape: Shape, sizes: Sizes, bench: Bench, rates: ProductRates
) -> tuple[Prediction, Prediction | None]:
    """What the step has to compute, and what the way computes beside (recomputation); of `plain` not known."""
    if way.name == FLOOR:
        floor = predict_floor(sizes, shape, bench.objective, rates)
        return floor, floor
    needed = predict(sizes, shape, bench.objective, rates, accumulation=way.accumulation)
    if way.name == PLAIN:
        return needed, None
    return needed, predict(
        sizes, shape, bench.objective, rates, accumulation=way.accumulation, checkpointing=way.checkpointing
    )


def shape_table(facts: dict[str, Any]) -> str:
    """Write one shape's lines as a Markdown table."""
    shape = facts["shape"]
    head = (
        f"{shape['name']}: {shape['hidden']} -> {shape['d_student']}, {shape['layers']} layers, vocabulary "
        f"{shape['vocabulary']:,}, micro-batches of {shape['batch']} x {shape['length']} = "
        f"{shape['batch'] * shape['length']:,} tokens"
    )
    lines = [head, "", f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(_cells(way))} |" for way in facts["ways"]]
    return "\n".join(lines)


def _cells(way: dict[str, Any]) -> list[str]:
    return [
        way["title"],
        f"{way['median_seconds']:.3g}",
        f"{way['tokens_per_second']:,.0f}",
        f"{way['model_flops_per_second'] / 1e9:,.0f}",
        f"{way['product_rate_share']:.0%}",
        _number(way["measured_over_predicted"]),
        _number(way.get("time_over_floor")),
        _number(way.get("speed_over_plain")),
        f"{way['peak_bytes'] / MIB:,.1f}",
        _number(way.get("peak_over_plain")),
        "" if way["kept_bytes"] is None else f"{way['kept_bytes'] / MIB:,.1f}",
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
