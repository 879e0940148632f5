"""Signals: before the loop they end the process with the code of a run that can go on, in the loop they are noted."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrc.training.checkpoint import read_state
from lrc.training.checkpoint_list import checkpoints, step_of
from lrc.training.preemption import PREEMPTED, SIGNALS, preemption_signals
from lrc.verbs.train import train
from tests.tiny import tiny_recipe


def test_the_code_is_the_one_that_means_try_again() -> None:
    assert PREEMPTED == os.EX_TEMPFAIL


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_loop_ends_the_process(number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as caught, preemption_signals():
        os.kill(os.getpid(), number)
    assert caught.value.code == PREEMPTED


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_loop_is_noted_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with preemption_signals() as preemption:
        preemption.is_deferred = True
        assert not preemption.is_requested
        os.kill(os.getpid(), number)
        assert preemption.is_requested
    assert [signal.getsignal(each) for each in SIGNALS] == before


def on_batch(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], None]) -> None:
    """Call `action(batch)` whenever the loop reads a batch."""
    from lrc.training import loop

    read = loop.step_batches

    def reading(blocks: Any, plan: Any, batch: int, **options: Any) -> Any:
        action(batch)
        return read(blocks, plan, batch, **options)

    monkeypatch.setattr(loop, "step_batches", reading)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_the_very_step_and_the_run_goes_on_as_if_nothing_was(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"start__method": "random", "train__max_steps": 6, "train__save_steps": 100, "train__evaluate_steps": 3}
    whole = train(tiny_recipe(tmp_path, run=str(tmp_path / "whole"), **changes))
    recipe = tiny_recipe(tmp_path, run=str(tmp_path / "stopped"), **changes)
    with monkeypatch.context() as patch:
        on_batch(patch, lambda batch: os.kill(os.getpid(), number) if batch == 2 else None)
        with pytest.raises(SystemExit) as caught:
            train(recipe)
    assert caught.value.code == PREEMPTED
    assert [step_of(path) for path in checkpoints(tmp_path / "stopped" / "train")] == [3]
    last = train(recipe, resume="auto")
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (last / name).read_bytes() == (whole / name).read_bytes()
    # the held-out measure at step 3 was left for later, and made up for
    measured = [(run / "train" / "metrics.jsonl").read_text() for run in (tmp_path / "whole", tmp_path / "stopped")]
    assert [text.count('"held_out", "step": 3,') for text in measured] == [1, 1]
    # the checkpoint knows it too, so that the best one can be kept
    (line,) = [line for line in measured[1].splitlines() if '"held_out", "step": 3,' in line]
    assert read_state(tmp_path / "stopped" / "train" / "checkpoint-3").held_out_kl == json.loads(line)["kl"]
