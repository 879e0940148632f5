"""Products of a part are those that its FLOPs are of, and predictions are FLOPs over rates."""

import dataclasses
import os
from collections.abc import Callable

import pytest
import torch

from benchmarks.speed import rates as module
from benchmarks.speed.rates import (
    GPU_SECONDS,
    PARTS,
    Product,
    ProductRates,
    part_products,
    predict,
    predict_floor,
    product_seconds,
    shape_sizes,
)
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.ways import PUBLISHED
from lrc.plan.flops import step_flops

SHAPE = SHAPES["tiny"]


def priced_at(seconds_per_flop: float) -> ProductRates:
    rates = ProductRates(part_products(shape_sizes(SHAPE), SHAPE), dtype=torch.float32, device=torch.device("cpu"))
    for product, times in rates.seconds.items():
        times.append(product.flops * seconds_per_flop)
    return rates


def test_the_products_of_a_layer_have_the_flops_that_the_plan_counts() -> None:
    sizes = shape_sizes(SHAPE)
    counted = step_flops(sizes, PUBLISHED, batch=SHAPE.batch, sequence=SHAPE.length, checkpointing="none")
    products = part_products(sizes, SHAPE)
    assert set(products) == set(PARTS) == {entry.name for entry in dataclasses.fields(counted)}
    listed = {part: SHAPE.layers * sum(product.flops for product in products[part]) for part in PARTS}
    attention = SHAPE.layers * 2 * SHAPE.tokens * SHAPE.length * SHAPE.heads * 2 * SHAPE.head_dim
    assert listed["teacher"] + attention == counted.teacher
    assert listed["student_forward"] + attention == counted.student_forward
    assert listed["student_backward"] + 2.5 * attention == counted.student_backward
    merged = 2 * SHAPE.d_student * SHAPE.hidden
    assert listed["merge_forward"] + merged * (SHAPE.vocabulary + SHAPE.tokens) == counted.merge_forward
    assert listed["merge_backward"] + merged * SHAPE.tokens == counted.merge_backward  # the head's goes past the merge
    assert listed["head"] / SHAPE.layers == counted.head  # the tiny head is one chunk


def test_a_prediction_is_flops_over_rates_with_whole_merges_once_a_step_and_the_embeddings_rows_each_time() -> None:
    rates, sizes = priced_at(1e-9), shape_sizes(SHAPE)
    one, three = (predict(sizes, SHAPE, PUBLISHED, rates, accumulation=count) for count in (1, 3))
    rows = 2 * SHAPE.tokens * SHAPE.hidden * SHAPE.d_student
    for part in PARTS:
        again = rows if part in ("merge_forward", "merge_backward") else one.flops[part]
        assert three.flops[part] == pytest.approx(one.flops[part] + 2 * again)
    assert one.total_seconds == pytest.approx(one.total_flops * 1e-9)
    floor = predict_floor(sizes, SHAPE, PUBLISHED, rates)
    layers = sum(one.flops[part] for part in floor.flops if part != "head")
    head = 2 * SHAPE.tokens * SHAPE.vocabulary * (SHAPE.hidden + 3 * SHAPE.d_student)
    assert floor.total_flops == layers + head < one.total_flops


def test_a_product_takes_time_in_both_layouts() -> None:
    rates = ProductRates(part_products(shape_sizes(SHAPE), SHAPE), dtype=torch.float32, device=torch.device("cpu"))
    rates.measure()
    assert all(1e6 < rates.part_rate(part) < 1e12 * (os.cpu_count() or 1) for part in PARTS)


class FakeGpu:
    """Stands for the matrices on a GPU and for its clock: a call takes 1/1024 s, the first one half a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._now = 0.0
        monkeypatch.setattr(module, "timed", self._timed)

    def __matmul__(self, other: object) -> None:
        self.calls += 1
        self._now += 2**-10 if self.calls > 1 else 0.5

    __mul__ = __matmul__

    def _timed(self, work: Callable[[], object], device: torch.device) -> float:
        began = self._now
        work()
        return self._now - began


WARM_UP, FIRST_TIMING = 1, 1
CALLS_ON_A_GPU = WARM_UP + FIRST_TIMING + 6
"""Six calls of 1/1024 s are the first to take `GPU_SECONDS`."""


@pytest.mark.parametrize("width", [4, 4096])
def test_a_product_on_a_gpu_is_warm_and_repeated_whatever_its_size(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    assert GPU_SECONDS == 5e-3
    gpu = FakeGpu(monkeypatch)
    monkeypatch.setattr(module, "_matrix", lambda *_: gpu)
    product = Product(rows=width, inner=width, columns=width)
    assert product_seconds(product, dtype=torch.bfloat16, device=torch.device("cuda")) == 2**-10
    assert gpu.calls == CALLS_ON_A_GPU
