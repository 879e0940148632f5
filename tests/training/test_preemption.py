"""Signals: before the loop they end the process with the code of a run that can go on, in the loop they are noted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrc.models.pair_model import PairModel
from lrc.training.checkpoint import read_state
from lrc.training.checkpoint_list import checkpoints, step_of
from lrc.training.preemption import PREEMPTED, SIGNALS, preemption_signals
from lrc.verbs import train as train_module
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


def test_a_signal_ends_a_process_that_waits_inside_torch_for_the_others() -> None:
    """A handler of Python's alone would wait for the other rank, which never comes."""
    waiting = """
from torch.distributed import TCPStore
from lrc.training.preemption import preemption_signals
with preemption_signals():
    print("waits", flush=True)
    TCPStore("127.0.0.1", 0, world_size=2, is_master=True)
"""
    process = subprocess.Popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(timeout=30) == PREEMPTED
    finally:
        process.kill()
        process.stdout.close()


def test_signal_handling_leaves_no_thread_and_no_open_file() -> None:
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    for _ in range(3):
        with preemption_signals() as preemption:
            preemption.is_deferred = True
            os.kill(os.getpid(), signal.SIGTERM)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


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


CHANGES: dict[str, Any] = {
    "start__method": "random",
    "train__max_steps": 6,
    "train__save_steps": 100,
    "train__evaluate_steps": 3,
}


def kill_at(step: int) -> Callable[[PairModel, int], dict[str, Any]]:
    """Send SIGTERM during the held-out measure of a step."""

    def measure(pair: PairModel, now: int) -> dict[str, Any]:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return measure


def files_of(last: Path) -> dict[str, bytes]:
    return {name: (last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


def steps_in(run: Path) -> list[int]:
    return [step_of(path) for path in checkpoints(run / "train")]


def num_measured(run: Path, step: int) -> int:
    return (run / "train" / "metrics.jsonl").read_text().count(f'"held_out", "step": {step},')


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_checks_ends_the_process_too(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "weights_hash", lambda folder: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as caught:
        train(tiny_recipe(tmp_path, **CHANGES))
    assert caught.value.code == PREEMPTED
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_told_to_stop_takes_leave_of_the_other_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(train_module, "end_training", lambda accelerator: ended.append(accelerator.num_processes))
    on_batch(monkeypatch, lambda batch: os.kill(os.getpid(), signal.SIGTERM) if batch == 1 else None)
    with pytest.raises(SystemExit):
        train(tiny_recipe(tmp_path, **CHANGES))
    assert ended == [1]


def test_a_signal_during_a_held_out_measure_saves_that_step(tmp_path: Path) -> None:
    whole = train(tiny_recipe(tmp_path, run=str(tmp_path / "whole"), **CHANGES))
    recipe = tiny_recipe(tmp_path, **CHANGES)
    with pytest.raises(SystemExit) as caught:
        train(recipe, also_measure=kill_at(3))
    assert caught.value.code == PREEMPTED
    assert steps_in(tmp_path / "run") == [3]
    assert read_state(tmp_path / "run" / "train" / "checkpoint-3").held_out_kl is not None
    assert files_of(train(recipe, resume="auto")) == files_of(whole)
    assert num_measured(tmp_path / "run", 3) == 1


def test_a_signal_during_the_last_measure_finds_the_run_finished(tmp_path: Path) -> None:
    last = train(tiny_recipe(tmp_path, **CHANGES), also_measure=kill_at(6))
    assert last.name == "checkpoint-6"
    assert num_measured(tmp_path / "run", 6) == 1


def stop_at_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stop a run after step 3, whose measure is left for later; return its recipe."""
    recipe = tiny_recipe(tmp_path, **CHANGES)
    with monkeypatch.context() as patch:
        on_batch(patch, lambda batch: os.kill(os.getpid(), signal.SIGTERM) if batch == 2 else None)
        with pytest.raises(SystemExit):
            train(recipe)
    assert (steps_in(tmp_path / "run"), num_measured(tmp_path / "run", 3)) == ([3], 0)
    return recipe


def test_a_signal_while_a_measure_is_made_up_for_ends_before_another_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stop_at_three(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        on_batch(patch, lambda batch: pytest.fail(f"batch {batch} was read"))
        with pytest.raises(SystemExit) as caught:
            train(recipe, resume="auto", also_measure=kill_at(3))
    assert caught.value.code == PREEMPTED
    assert read_state(tmp_path / "run" / "train" / "checkpoint-3").held_out_kl is not None
    train(recipe, resume="auto")
    assert num_measured(tmp_path / "run", 3) == 1


def test_a_kill_while_the_only_checkpoint_gets_its_measure_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_recipe(tmp_path, run=str(tmp_path / "whole"), **CHANGES))
    recipe = stop_at_three(tmp_path, monkeypatch)
    rename = Path.rename

    def dying(self: Path, target: Path) -> Path:
        if self.name == ".checkpoint-3.partial":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, resume="auto")
    assert not (tmp_path / "run" / "train" / "checkpoint-3").exists()
    with monkeypatch.context() as patch:
        begun: list[int] = []
        on_batch(patch, begun.append)
        last = train(recipe, resume="auto")
    assert begun == [3, 4, 5]
    assert num_measured(tmp_path / "run", 3) == 1
    assert files_of(last) == files_of(whole)
    assert sorted(path.name for path in last.parent.glob("*checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
