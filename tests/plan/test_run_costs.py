"""Hours of the published runs, the first way that fits, and the disk."""

from dataclasses import replace

import pytest
import torch

from lrc.config import Checkpointing, ObjectiveConfig
from lrc.models.discovery import discover
from lrc.plan.devices import parse_machine
from lrc.plan.run_costs import PUBLISHED_MFU, Fit, RunShape, best_way, compute_dtype, disk, pace
from lrc.plan.sizes import measure_sizes
from lrc.plan.strategies import ONE_DEVICE, STRATEGIES
from tests.plan.published import published_runs

RUNS = {run.recipe: run for run in published_runs()}
STEPS = {"lrc_1.5b": (3, 208_000), "lrc_1.7b": (2, 610_352), "lrc_4b": (2, 549_317)}
"""Rows a device and steps, on 8 devices."""


def run_shape(batch: int, steps: int, accumulation: int = 1) -> RunShape:
    return RunShape(
        objective=ObjectiveConfig(),
        sequence=2048,
        batch=batch,
        accumulation=accumulation,
        merge="auto",
        optimizer="adamw",
        masked=True,
        tokens=batch * 2048 * 8 * steps,
        checkpoints=2,
        mfu=PUBLISHED_MFU,
    )


@pytest.mark.parametrize("name", list(STEPS))
def test_published_hours_come_out_near(name: str) -> None:
    run = RUNS[name]
    sizes = measure_sizes(run.config, discover(run.config), run.variant, run.d_student)
    fit = Fit(
        machine=parse_machine("8xh800"), strategy=STRATEGIES[0], checkpointing="none", largest_batch=STEPS[name][0]
    )
    found = pace(sizes, run_shape(*STEPS[name]), fit, batch=STEPS[name][0])
    assert found is not None
    assert run.hours is not None
    # the share of the peak is taken from the first; the other two follow within a fifth
    assert found.hours == pytest.approx(run.hours, rel=0.02 if name == "lrc_1.5b" else 0.2)


def test_hours_count_one_merge_a_step_where_the_strategy_shares_it() -> None:
    run = RUNS["lrc_1.7b"]
    sizes = measure_sizes(run.config, discover(run.config), run.variant, run.d_student)
    hours = {}
    for strategy in STRATEGIES:
        fit = Fit(machine=parse_machine("8xh800"), strategy=strategy, checkpointing="none", largest_batch=1)
        for accumulation in (1, 4):
            found = pace(sizes, run_shape(1, 1000, accumulation), fit, batch=1)
            assert found is not None
            hours[strategy.name, accumulation] = found.hours
    assert hours["DDP", 4] < 0.95 * hours["DDP", 1]
    assert hours["FSDP2", 4] == hours["FSDP2", 1] == hours["DDP", 1]


def test_hours_count_muon_s_products_once_a_step_and_once_for_all_devices() -> None:
    run = RUNS["lrc_1.7b"]
    sizes = measure_sizes(run.config, discover(run.config), run.variant, run.d_student)
    wide, narrow = run.config.hidden_size, run.d_student
    products = (7 * run.config.num_hidden_layers + 1) * (8 * wide * narrow**2 + 28 * narrow**3)
    for machine, accumulation in (("8xh800", 1), ("8xh800", 4), ("h800", 1)):
        place = parse_machine(machine)
        fit = Fit(machine=place, strategy=STRATEGIES[0], checkpointing="none", largest_batch=1)
        shape = run_shape(1, 1000, accumulation)
        plain, muon = (
            pace(sizes, replace(shape, optimizer=optimizer), fit, batch=1) for optimizer in ("adamw", "muon")
        )
        assert plain is not None
        assert muon is not None
        steps = shape.tokens / (2048 * accumulation * place.count)
        assert place.device.flops_per_second is not None
        seconds = steps * products / (place.count * place.device.flops_per_second * PUBLISHED_MFU)
        assert muon.hours - plain.hours == pytest.approx(seconds / 3600)


def fits_of(*batches: int, checkpointing: Checkpointing = "none") -> list[Fit]:
    return [
        Fit(machine=parse_machine("h100"), strategy=ONE_DEVICE, checkpointing=checkpointing, largest_batch=batch)
        for batch in batches
    ]


def test_the_first_way_that_takes_the_batch_is_chosen_else_the_roomiest() -> None:
    assert best_way(fits_of(2, 5, 9), 4) == fits_of(5)[0]
    assert best_way(fits_of(2, 3, 1), 4) == fits_of(3)[0]
    assert best_way(fits_of(0, 0), 4) is None
    assert best_way([*fits_of(9, checkpointing="layer"), *fits_of(5)], 4) == fits_of(5)[0]


def test_the_disk_holds_tokens_checkpoints_and_the_student() -> None:
    run = RUNS["lrc_1.5b"]
    sizes = measure_sizes(run.config, discover(run.config), run.variant, run.d_student)
    found = disk(sizes, run_shape(3, 208_000))
    assert found.data == 4 * 3 * 2048 * 8 * 208_000
    assert found.checkpoint == 12 * sizes.trained_parameters
    assert found.checkpoints == 4 * found.checkpoint
    assert found.student == 2 * sizes.student_parameters


def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu() -> None:
    assert compute_dtype("auto", parse_machine("h100")) == torch.bfloat16
    assert compute_dtype("auto", parse_machine("cpu")) == torch.float32
    assert compute_dtype("float32", parse_machine("h100")) == torch.float32
