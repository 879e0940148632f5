"""A run's state reads back equal, and says which batch comes next."""

import json

import pytest

from lrc.training.run_state import RunState

STATE = RunState(step=7, tokens=99, seconds=1.25, sequences_per_step=8)


@pytest.mark.parametrize(
    "state",
    [
        STATE,
        RunState(
            step=3,
            tokens=9,
            seconds=0.1,
            sequences_per_step=4,
            held_out_kl=0.1 + 0.2,
            skipped_batches=(1, 2),
            gradient_norms=(1e-7, 3.3),
            objectives=(2.5, 0.0),
        ),
    ],
)
def test_a_state_reads_back_equal(state: RunState) -> None:
    assert RunState.from_json(state.to_json()) == state


def test_a_state_from_before_losses_were_kept_reads() -> None:
    values = json.loads(STATE.to_json())
    del values["objectives"]
    assert RunState.from_json(json.dumps(values)) == STATE


@pytest.mark.parametrize("text", ["", "[]", "3", '{"step": 1}', STATE.to_json().replace('"tokens"', '"token"')])
def test_another_content_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        RunState.from_json(text)


@pytest.mark.parametrize(
    ("skipped", "batches"),
    [((), [0, 1, 2, 3, 4]), ((2,), [0, 1, 3, 4, 5]), ((0, 1), [2, 3, 4, 5, 6]), ((1, 3, 4), [0, 2, 5, 6, 7])],
)
def test_skipped_batches_are_left_out_of_the_order(skipped: tuple[int, ...], batches: list[int]) -> None:
    states = [
        RunState(step=step, tokens=0, seconds=0, sequences_per_step=1, skipped_batches=skipped) for step in range(5)
    ]
    assert [state.next_batch for state in states] == batches
