"""What is not finite or explodes is named before a step is done, by the median of the last steps."""

from dataclasses import replace
from pathlib import Path

import pytest

from lrc.config import TrainConfig
from lrc.data.blocks import BatchPlan, open_blocks
from lrc.training.divergence import LEAST, WINDOW, find_divergence, sources_of, with_step
from lrc.training.run_state import RunState
from tests.tiny import write_rows

NAN, INF = float("nan"), float("inf")
SETTINGS = TrainConfig(max_steps=1, divergence_factor=10.0)


def state_with(norms: list[float], objectives: list[float] | None = None) -> RunState:
    numbers = {"gradient_norms": tuple(norms), "objectives": tuple(objectives or [])}
    return RunState(step=0, tokens=0, seconds=0, sequences_per_step=1, **numbers)


@pytest.mark.parametrize(("objective", "norm"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, INF), (-INF, NAN)])
def test_what_is_not_finite_diverges_from_the_first_step_on(objective: float, norm: float) -> None:
    found = find_divergence(replace(SETTINGS, divergence_factor=None), state_with([]), objective=objective, norm=norm)
    assert found is not None
    assert "must be finite" in found


def test_a_norm_is_compared_with_the_median_of_enough_steps() -> None:
    few, enough = state_with([2.0] * (LEAST - 1)), state_with([2.0] * (LEAST - 1) + [1e9])
    assert find_divergence(SETTINGS, few, objective=1.0, norm=1e6) is None
    assert find_divergence(SETTINGS, enough, objective=1.0, norm=20.0) is None
    assert "10 times the median 2 of the last 16 steps, found 20.1" in str(
        find_divergence(SETTINGS, enough, objective=1.0, norm=20.1)
    )
    assert find_divergence(replace(SETTINGS, divergence_factor=None), enough, objective=1.0, norm=1e30) is None


def test_a_loss_is_compared_with_the_median_of_enough_steps() -> None:
    few, enough = ([2.0] * (LEAST - 1), [2.0] * (LEAST - 1) + [1e9])
    assert find_divergence(SETTINGS, state_with(enough, few), objective=1e6, norm=1.0) is None
    state = state_with([], enough)
    assert find_divergence(SETTINGS, state, objective=20.0, norm=1e6) is None
    assert find_divergence(SETTINGS, state, objective=20.1, norm=1.0) == (
        "the loss must be at most 10 times the median 2 of the last 16 steps, found 20.1"
    )
    assert find_divergence(replace(SETTINGS, divergence_factor=None), state, objective=1e30, norm=1.0) is None


def test_a_loss_near_zero_does_not_explode_by_its_ratio() -> None:
    state = state_with([], [1e-4] * LEAST)
    assert find_divergence(SETTINGS, state, objective=9.9, norm=1.0) is None
    assert find_divergence(SETTINGS, state, objective=10.1, norm=1.0) == (
        "the loss must be at most 10 times the median 0.0001 (which counts as 1) of the last 16 steps, found 10.1"
    )


def test_only_the_last_steps_are_kept() -> None:
    state = state_with([])
    for number in range(WINDOW + 5):
        state = with_step(state, objective=2.0 * number, norm=float(number))
    assert state.gradient_norms == tuple(float(number) for number in range(5, WINDOW + 5))
    assert state.objectives == tuple(2.0 * number for number in range(5, WINDOW + 5))


def test_every_sequence_of_a_batch_is_named_on_all_ranks(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", rows=12)
    blocks = open_blocks(str(tmp_path / "rows.jsonl"), None, sequence_length=16, vocab_size=48)
    one = BatchPlan(seed=0, batch_size=6, accumulation=1)
    split = BatchPlan(seed=0, batch_size=1, accumulation=3, num_ranks=2)
    names = [sorted(sources_of(blocks, plan, 1)) for plan in (one, split)]
    assert names[0] == names[1]
    lines = {int(name.rpartition(":")[2]) for name in names[0]}
    assert len(lines) == 6
    assert lines <= set(range(1, 13))
    assert sorted({*names[0], *sources_of(blocks, one, 0)}) == sorted(
        f"{tmp_path / 'rows.jsonl'}:{n}" for n in range(1, 13)
    )
