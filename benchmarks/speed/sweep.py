"""A sweep: one size doubled, the step timed at each point, exponents of time and memory beside the cost model's."""

import math
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.one_shape import MIB, Settings
from benchmarks.speed.rates import ProductRates, part_products, predict, shape_sizes, timed
from benchmarks.speed.shapes import Shape
from benchmarks.speed.ways import Bench


def exponent(factors: list[int], values: list[float]) -> float:
    """Fit `values ~ factors ** exponent` by least squares on logarithms."""
    x, y = [math.log(factor) for factor in factors], [math.log(value) for value in values]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


def measure_sweep(
    shape: Shape, axis: str, num_points: int, settings: Settings, report: Callable[[str], None]
) -> dict[str, Any]:
    """Time our step at 1, 2, 4, ... times `axis`, all points once a round; returns the JSON's part."""
    factors = [2**point for point in range(num_points)]
    shapes = [shape.grown(axis, factor) for factor in factors]
    benches = [
        Bench(grown, dtype=settings.dtype, device=settings.device, most_batches=1, optimizer=settings.optimizer)
        for grown in shapes
    ]
    sizes = [shape_sizes(grown) for grown in shapes]
    rates = [
        ProductRates(part_products(size, grown), dtype=settings.dtype, device=settings.device)
        for size, grown in zip(sizes, shapes, strict=True)
    ]
    seconds: list[list[float]] = [[] for _ in factors]
    for bench in benches:
        bench.ours(1)
    for number in range(settings.rounds):
        for bench, rate, times in zip(benches, rates, seconds, strict=True):
            rate.measure()
            times.append(timed(lambda bench=bench: bench.ours(1), settings.device))  # type: ignore[misc]
        report(f"{shape.name}: {axis}, round {number + 1} of {settings.rounds}")
    points = []
    for factor, grown, bench, size, rate, times in zip(factors, shapes, benches, sizes, rates, seconds, strict=True):
        prediction = predict(size, grown, bench.objective, rate)
        points.append(
            {
                "factor": factor,
                "value": grown.tokens if axis == "tokens" else getattr(grown, "hidden" if axis == "width" else axis),
                "seconds": times,
                "median_seconds": statistics.median(times),
                "predicted_seconds": prediction.total_seconds,
                "flops": prediction.total_flops,
                "peak_bytes": peak_bytes(lambda bench=bench: bench.ours(1), settings.device),  # type: ignore[misc]
            }
        )
    names = {"measured": "median_seconds", "predicted": "predicted_seconds", "flops": "flops", "peak": "peak_bytes"}
    exponents = {name: exponent(factors, [point[key] for point in points]) for name, key in names.items()}
    return {"shape": shape.name, "axis": axis, "points": points, "exponents": exponents}


def sweep_table(found: dict[str, Any]) -> str:
    """Write a sweep as a Markdown table, the exponents in its last line."""
    axis, exponents = found["axis"], found["exponents"]
    lines = [
        f"{found['shape']}, {axis} doubled",
        "",
        f"| {axis if axis != 'width' else 'hidden size'} | s/step | predicted s | GFLOP | peak MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {point['value']:,} | {point['median_seconds']:.3g} | {point['predicted_seconds']:.3g} | "
        f"{point['flops'] / 1e9:,.1f} | {point['peak_bytes'] / MIB:,.1f} |"
        for point in found["points"]
    ]
    lines.append(
        f"| exponent | {exponents['measured']:.3f} | {exponents['predicted']:.3f} | {exponents['flops']:.3f} | "
        f"{exponents['peak']:.3f} |"
    )
    off = exponents["measured"] / exponents["predicted"] - 1
    return "\n".join([*lines, "", f"measured exponent against the cost model's: {off:+.1%}"])
