"""A killed run, resumed, ends bit-equal to one that was never interrupted; SIGTERM saves and ends cleanly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrc.training.launch import write_recipe
from lrc.training.preemption import PREEMPTED
from lrc.verbs.train import train
from tests.tiny import tiny_recipe

STEPS = 40


def launch(path: Path, *flags: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lrc", "train", str(path), *flags],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(run: Path, process: "subprocess.Popen[str]", step: int) -> None:
    for _ in range(3000):
        if (run / "train" / f"checkpoint-{step}").exists():
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    pytest.fail(f"no checkpoint-{step}")


def files_of(run: Path) -> dict[str, bytes]:
    last = run / "train" / f"checkpoint-{STEPS}"
    return {name: (last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


@pytest.mark.parametrize(("step", "optimizer"), [(2, "adamw"), (6, "muon"), (14, "adamw")])
def test_kill_and_resume_end_bit_equal(tmp_path: Path, step: int, optimizer: str) -> None:
    settings = {"train__max_steps": STEPS, "train__optimizer": optimizer}
    train(tiny_recipe(tmp_path, run=str(tmp_path / "whole"), **settings))
    recipe = tiny_recipe(tmp_path, run=str(tmp_path / "killed"), **settings)
    write_recipe(tmp_path / "killed.yaml", recipe)
    process = launch(tmp_path / "killed.yaml")
    wait_for_checkpoint(tmp_path / "killed", process, step)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "train" / f"checkpoint-{STEPS}").exists()
    resumed = launch(tmp_path / "killed.yaml", "--resume", "auto")
    _, errors = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, errors
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "killed" / "train" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_sigterm_saves_and_exits_and_the_run_goes_on(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, run=str(tmp_path / "whole"), train__max_steps=STEPS))
    recipe = tiny_recipe(
        tmp_path, run=str(tmp_path / "stopped"), train__max_steps=STEPS, train__save_steps=4, train__log_steps=1
    )
    write_recipe(tmp_path / "stopped.yaml", recipe)
    process = launch(tmp_path / "stopped.yaml")
    wait_for_checkpoint(tmp_path / "stopped", process, 4)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED, errors
    saved = max(int(path.name.rpartition("-")[2]) for path in (tmp_path / "stopped" / "train").glob("checkpoint-*"))
    assert 4 <= saved < STEPS
    train(recipe, resume="auto")
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


def test_resume_auto_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, train__max_steps=2)
    assert train(recipe, resume="auto").name == "checkpoint-2"


def test_a_half_written_checkpoint_is_never_resumed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, train__max_steps=4)
    train(recipe)
    folder = tmp_path / "run" / "train"
    (folder / "checkpoint-4").rename(folder / ".checkpoint-4.partial")
    assert train(recipe, resume="auto").name == "checkpoint-4"
    assert not (folder / ".checkpoint-4.partial").exists()
