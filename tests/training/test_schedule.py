"""Learning rates worked out by hand, and what holds for every schedule."""

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrc.config import TrainConfig
from lrc.training.schedule import is_measured, learning_rate

Schedule = Literal["linear", "cosine", "wsd", "constant"]
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "wsd", "constant")


def settings_of(schedule: Schedule, **others: float) -> TrainConfig:
    return TrainConfig(schedule=schedule, learning_rate=2.0, max_steps=10, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1, 2, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 2, *(1 + math.cos(math.pi * done / 8) for done in range(8))]),
        ("wsd", [1, 2, 2, 2, 2, 2, 2, 1.5, 1, 0.5]),
        ("constant", [1, 2, 2, 2, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_each_schedule_s_rates_are_the_ones_worked_out_by_hand(schedule: Schedule, expected: list[float]) -> None:
    settings = settings_of(schedule, warmup_ratio=0.2, decay_ratio=0.4)
    # wsd falls over the last 4 steps, from the peak at the first of them towards 0 after the last
    assert [learning_rate(settings, step) for step in range(10)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak_rate(schedule: Schedule) -> None:
    assert learning_rate(settings_of(schedule, warmup_ratio=0.0), 0) == 2.0


def test_a_part_of_a_step_of_warm_up_counts_as_one() -> None:
    settings = settings_of("linear", warmup_ratio=0.25)
    assert [learning_rate(settings, step) for step in range(4)] == pytest.approx([2 / 3, 4 / 3, 2, 2])


def test_a_run_of_warm_up_only_reaches_the_peak_at_its_last_step() -> None:
    for schedule in SCHEDULES:
        assert learning_rate(settings_of(schedule, warmup_ratio=1.0), 9) == 2.0


def test_wsd_without_decay_stays() -> None:
    assert learning_rate(settings_of("wsd", warmup_ratio=0.0, decay_ratio=0.0), 9) == 2.0


def test_the_published_run_peaks_after_1040_steps_and_ends_next_to_0() -> None:
    published = TrainConfig(max_steps=208_000, learning_rate=1e-4, warmup_ratio=0.005, schedule="linear")
    assert learning_rate(published, 0) == pytest.approx(1e-4 / 1040)
    assert learning_rate(published, 1038) < learning_rate(published, 1039) == 1e-4
    assert learning_rate(published, 1041) < 1e-4
    assert 0 < learning_rate(published, 207_999) < 1e-9


@given(
    schedule=st.sampled_from(SCHEDULES),
    max_steps=st.integers(1, 60),
    warmup_ratio=st.floats(0, 1),
    decay_ratio=st.floats(0, 1),
)
def test_every_schedule_rises_to_the_peak_then_never_rises_again(
    schedule: Schedule, max_steps: int, warmup_ratio: float, decay_ratio: float
) -> None:
    settings = TrainConfig(
        schedule=schedule, max_steps=max_steps, learning_rate=3.0, warmup_ratio=warmup_ratio, decay_ratio=decay_ratio
    )
    warmup = math.ceil(warmup_ratio * max_steps)
    rates = [learning_rate(settings, step) for step in range(max_steps)]
    assert all(0 < rate <= 3.0 for rate in rates)
    assert rates[:warmup] == sorted(set(rates[:warmup]))
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if warmup:
        assert rates[warmup - 1] == 3.0


@pytest.mark.parametrize(
    ("max_steps", "evaluate_steps", "expected"),
    [(10, None, [2, 5, 8, 10]), (3, None, [1, 2, 3]), (10, 4, [4, 8, 10]), (10, 20, [10])],
)
def test_held_out_text_is_measured_as_asked_or_each_quarter_and_at_the_end(
    max_steps: int, evaluate_steps: int | None, expected: list[int]
) -> None:
    settings = TrainConfig(max_steps=max_steps, evaluate_steps=evaluate_steps)
    assert [step for step in range(1, max_steps + 1) if is_measured(settings, step)] == expected
