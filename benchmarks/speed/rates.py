"""The machine's own rate at the matrix products of a step, and the time that the counted FLOPs would take at it.

FLOPs come from `lrc/plan/flops.py:step_flops`, nothing is counted twice. Here stands only which products a part of the
step is made of, since a rate belongs to a shape: small or thin products are slower than large ones.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.speed.shapes import Shape
from lrc.clone.head import chunk_positions, is_cheaper_straight
from lrc.config import Checkpointing, ObjectiveConfig
from lrc.models.discovery import discover
from lrc.plan.flops import StepFlops, floor_head_flops, step_flops
from lrc.plan.sizes import Sizes, measure_sizes

PARTS = (
    "teacher",
    "student_forward",
    "student_backward",
    "merge_forward",
    "merge_backward",
    "clone",
    "head",
    "checkpointing",
)
GPU_SECONDS = 5e-3
"""About how long a GPU is busy while an operation is timed: beside it one launch is nothing."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product `[rows, inner] @ [inner, columns]` as it lies in memory."""

    rows: int
    inner: int
    columns: int
    left_transposed: bool = False
    right_transposed: bool = False

    @property
    def flops(self) -> float:
        """Operations of one such product."""
        return 2.0 * self.rows * self.inner * self.columns


def part_products(sizes: Sizes, shape: Shape) -> dict[str, list[Product]]:
    """List the products of each part of a step, those of one layer of each matrix; attention's own are left out.

    Args:
        sizes: Teacher and student.
        shape: Gives the micro-batch.
    """
    n, d_t, d_s = shape.tokens, sizes.d_teacher, sizes.d_student
    parts: dict[str, list[Product]] = {part: [] for part in PARTS}
    prefix = sizes.layer(0)
    for name, size in sizes.teacher.items():
        if not name.startswith(prefix) or len(size) != 2:
            continue
        out, inner = size
        entry = sizes.architecture.projected.get(name)
        parts["teacher"].append(_linear(n, inner, out))
        if entry is None:
            student_out, student_inner = out, inner
        elif entry.axis == 1:
            student_out, student_inner = out, d_s
            parts["merge_forward"].append(Product(rows=out, inner=d_t, columns=d_s))
            parts["merge_backward"].append(Product(rows=d_t, inner=out, columns=d_s, left_transposed=True))
        else:
            student_out, student_inner = d_s, inner
            parts["merge_forward"].append(Product(rows=d_s, inner=d_t, columns=inner, left_transposed=True))
            parts["merge_backward"].append(Product(rows=d_t, inner=inner, columns=d_s, right_transposed=True))
        parts["student_forward"].append(_linear(n, student_inner, student_out))
        parts["student_backward"] += _linear_backward(n, student_inner, student_out)
    parts["clone"] = [
        Product(rows=n, inner=d_t, columns=d_s),
        Product(rows=d_t, inner=n, columns=d_s, left_transposed=True),
    ]
    rows = chunk_positions(sizes.vocabulary, positions=n)
    backward = _linear_backward(rows, d_s, sizes.vocabulary)
    if is_cheaper_straight(sizes.vocabulary, d_t, d_s, positions=n):
        backward = [
            Product(rows=rows, inner=sizes.vocabulary, columns=d_t),
            Product(rows=rows, inner=d_t, columns=d_s),
            Product(rows=d_t, inner=rows, columns=d_s, left_transposed=True),
        ]
    parts["head"] = [_linear(rows, d_t, sizes.vocabulary), _linear(rows, d_s, sizes.vocabulary), *backward]
    parts["checkpointing"] = [*parts["teacher"], *parts["student_forward"]]
    return parts


def _linear(positions: int, inner: int, out: int) -> Product:
    return Product(rows=positions, inner=inner, columns=out, right_transposed=True)


def _linear_backward(positions: int, inner: int, out: int) -> list[Product]:
    """Gradient of the input, then of the weight."""
    return [
        Product(rows=positions, inner=out, columns=inner),
        Product(rows=out, inner=positions, columns=inner, left_transposed=True),
    ]


class ProductRates:
    """Times of each distinct product, one more a round."""

    def __init__(self, products: dict[str, list[Product]], *, dtype: torch.dtype, device: torch.device) -> None:
        self.products, self.dtype, self.device = products, dtype, device
        self.seconds: dict[Product, list[float]] = {product: [] for listed in products.values() for product in listed}
        self.measure(keep=False)

    def measure(self, *, keep: bool = True) -> None:
        """Time every product once."""
        for product, times in self.seconds.items():
            taken = product_seconds(product, dtype=self.dtype, device=self.device)
            if keep:
                times.append(taken)

    def part_rate(self, part: str) -> float:
        """FLOP/s over a part's products, each as often as its FLOPs weigh."""
        listed = self.products[part]
        flops = sum(product.flops for product in listed)
        return flops / sum(statistics.median(self.seconds[product]) for product in listed)


def product_seconds(product: Product, *, dtype: torch.dtype, device: torch.device) -> float:
    """Time one product; one that takes less than a few milliseconds is repeated."""
    left = _matrix(product.rows, product.inner, product.left_transposed, dtype, device)
    right = _matrix(product.inner, product.columns, product.right_transposed, dtype, device)
    if device.type == "cuda":
        return gpu_seconds(lambda: left @ right, device)
    repeats = max(1, min(50, int(5e8 / product.flops)))
    left @ right if repeats > 1 else None  # warm
    return timed(lambda: [left @ right for _ in range(repeats)], device) / repeats


def _matrix(rows: int, columns: int, transposed: bool, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    shape = (columns, rows) if transposed else (rows, columns)
    made = torch.full(shape, 0.5, dtype=dtype, device=device)
    return made.T if transposed else made


def gpu_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one call on a GPU: a warm one, of as many in a row as take about `GPU_SECONDS`."""
    work()
    repeats = math.ceil(GPU_SECONDS / timed(work, device))
    return timed(partial(repeat, work, repeats), device) / repeats


def repeat(work: Callable[[], object], count: int) -> None:
    """Do a work so many times, and keep nothing of it."""
    for _ in range(count):
        work()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, the GPU's included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """FLOPs of one optimiser step by part, and the seconds that they take at the measured rates."""

    flops: dict[str, float]
    seconds: dict[str, float]

    @property
    def total_flops(self) -> float:
        """All of it."""
        return sum(self.flops.values())

    @property
    def total_seconds(self) -> float:
        """All of it."""
        return sum(self.seconds.values())


def shape_sizes(shape: Shape) -> Sizes:
    """Measure both models of a shape."""
    config: Any = shape.config()
    return measure_sizes(config, discover(config), shape.variant, shape.d_student)


def predict(
    sizes: Sizes,
    shape: Shape,
    objective: ObjectiveConfig,
    rates: ProductRates,
    *,
    accumulation: int = 1,
    checkpointing: Checkpointing = "none",
) -> Prediction:
    """Predict one optimiser step of `accumulation` micro-batches that share the merges of layers and head."""
    counted: StepFlops = step_flops(
        sizes,
        objective,
        batch=shape.batch,
        sequence=shape.length,
        checkpointing=checkpointing,
        merge_shared_by=accumulation,
    )
    return _priced({part: getattr(counted, part) * accumulation for part in PARTS}, rates)


def predict_floor(sizes: Sizes, shape: Shape, objective: ObjectiveConfig, rates: ProductRates) -> Prediction:
    """Predict one micro-batch of the floor: both models and their heads, nothing of the method."""
    counted = step_flops(sizes, objective, batch=shape.batch, sequence=shape.length, checkpointing="none")
    flops = {part: getattr(counted, part) for part in ("teacher", "student_forward", "student_backward")}
    return _priced(flops | {"head": floor_head_flops(sizes, shape.tokens)}, rates)


def _priced(flops: dict[str, float], rates: ProductRates) -> Prediction:
    return Prediction(flops=flops, seconds={part: count / rates.part_rate(part) for part, count in flops.items()})
