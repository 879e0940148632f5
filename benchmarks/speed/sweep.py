"""A sweep: one size doubled, the step timed at each point, exponents of time and memory beside the cost model's.

What is predicted is the sum of three: FLOPs of the products, each part at the rate of its own, bytes that all other
operations move, each at the rate of a pass of its size, and a call's cost for every operation.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.one_shape import MIB, Settings
from benchmarks.speed.passes import PassRates, count_passes
from benchmarks.speed.rates import ProductRates, part_products, predict, shape_sizes, timed
from benchmarks.speed.shapes import SHAPES, Shape
from benchmarks.speed.ways import Bench


def exponent(factors: list[int], values: list[float]) -> float:
    """Fit `values ~ factors ** exponent` by least squares on logarithms."""
    x, y = [math.log(factor) for factor in factors], [math.log(value) for value in values]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


class _Point:
    """One size of a sweep: its step, what the step consists of, and its times."""

    def __init__(self, shape: Shape, settings: Settings) -> None:
        self.shape, self.device = shape, settings.device
        self.bench = Bench(
            shape, dtype=settings.dtype, device=settings.device, most_batches=1, optimizer=settings.optimizer
        )
        self.sizes = shape_sizes(shape)
        self.products = ProductRates(part_products(self.sizes, shape), dtype=settings.dtype, device=settings.device)
        self.step()  # warm
        self.passes = count_passes(self.step)
        self.seconds: list[float] = []

    def step(self) -> None:
        self.bench.ours(1)

    def measure(self) -> None:
        self.products.measure()
        self.seconds.append(timed(self.step, self.device))

    def seconds_of_a_call(self, rates: PassRates) -> float:
        """What is left of the step's time beside products and passes, for each of its calls."""
        priced = predict(self.sizes, self.shape, self.bench.objective, self.products).total_seconds
        left = statistics.median(self.seconds) - priced - rates.seconds_of(self.passes)
        return max(0.0, left) / self.passes.calls

    def facts(self, rates: PassRates, call_seconds: float) -> dict[str, Any]:
        """Collect what goes into the JSON."""
        products = predict(self.sizes, self.shape, self.bench.objective, self.products)
        parts = {
            "product_seconds": products.total_seconds,
            "pass_seconds": rates.seconds_of(self.passes),
            "call_seconds": self.passes.calls * call_seconds,
        }
        return {
            "seconds": self.seconds,
            "median_seconds": statistics.median(self.seconds),
            "predicted_seconds": sum(parts.values()),
            **parts,
            "flops": products.total_flops,
            "pass_bytes": self.passes.bytes.total(),
            "calls": self.passes.calls,
            "peak_bytes": peak_bytes(self.step, self.device),
        }


def measure_sweep(
    shape: Shape, axis: str, num_points: int, settings: Settings, report: Callable[[str], None]
) -> dict[str, Any]:
    """Time our step at 1, 2, 4, ... times `axis`, all points once a round; returns the JSON's part."""
    factors = [2**number for number in range(num_points)]
    points = [_Point(shape.grown(axis, factor), settings) for factor in factors]
    calls = _Point(SHAPES["tiny"], settings)
    rates = PassRates(set[Any]().union(*(point.passes.bytes for point in (calls, *points))), device=settings.device)
    for number in range(settings.rounds):
        rates.measure()
        for point in (calls, *points):
            point.measure()
        report(f"{shape.name}: {axis}, round {number + 1} of {settings.rounds}")
    call_seconds = calls.seconds_of_a_call(rates)
    attribute = {"tokens": "tokens", "width": "hidden"}.get(axis, axis)
    found = [
        {"factor": factor, "value": getattr(point.shape, attribute), **point.facts(rates, call_seconds)}
        for factor, point in zip(factors, points, strict=True)
    ]
    names = {
        "measured": "median_seconds",
        "predicted": "predicted_seconds",
        "products": "product_seconds",
        "flops": "flops",
        "peak": "peak_bytes",
    }
    exponents = {name: exponent(factors, [point[key] for point in found]) for name, key in names.items()}
    return {
        "shape": shape.name,
        "axis": axis,
        "seconds_of_a_call": call_seconds,
        "points": found,
        "exponents": exponents,
    }


def sweep_table(found: dict[str, Any]) -> str:
    """Write a sweep as a Markdown table, the exponents in its last line."""
    axis, exponents = found["axis"], found["exponents"]
    lines = [
        f"{found['shape']}, {axis} doubled; a call {1e6 * found['seconds_of_a_call']:.1f} us",
        "",
        f"| {axis if axis != 'width' else 'hidden size'} | s/step | predicted s | products | passes | calls | GFLOP | "
        "passes, GB | peak MiB |",
        "|" + " --- |" * 9,
    ]
    lines += [
        f"| {point['value']:,} | {point['median_seconds']:.3g} | {point['predicted_seconds']:.3g} | "
        f"{point['product_seconds']:.3g} | {point['pass_seconds']:.3g} | {point['call_seconds']:.3g} | "
        f"{point['flops'] / 1e9:,.1f} | {point['pass_bytes'] / 1e9:,.2f} | {point['peak_bytes'] / MIB:,.1f} |"
        for point in found["points"]
    ]
    lines.append(
        f"| exponent | {exponents['measured']:.3f} | {exponents['predicted']:.3f} | {exponents['products']:.3f} | | | "
        f"{exponents['flops']:.3f} | | {exponents['peak']:.3f} |"
    )
    off = exponents["measured"] / exponents["predicted"] - 1
    return "\n".join([*lines, "", f"measured exponent against the cost model's: {off:+.1%}"])
