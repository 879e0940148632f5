"""A disk that fills up while a checkpoint or student is written: exit code 2, earlier files whole, no litter."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from lrc.training.launch import write_recipe
from lrc.verbs.train import train
from tests.tiny import tiny_recipe

SMALL = 20_000
"""Largest file that the child may write, in bytes; a checkpoint's tensors take more."""


def limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))


def run_limited(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "lrc", *arguments],
        env=environment,
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        timeout=200,
    )


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_training_keeps_its_last_whole_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, train__max_steps=2)
    train(recipe)
    longer = tiny_recipe(tmp_path, train__max_steps=4)
    write_recipe(tmp_path / "longer.yaml", longer)
    folder = tmp_path / "run" / "train"
    weights = (folder / "checkpoint-2" / "model.safetensors").read_bytes()
    done = run_limited("train", str(tmp_path / "longer.yaml"), "--resume", "auto")
    assert done.returncode == 2, done.stderr
    assert "disk is full" in done.stderr
    assert "checkpoint-4" in done.stderr
    assert (folder / "checkpoint-2" / "model.safetensors").read_bytes() == weights
    assert not list(folder.glob("*checkpoint-4*"))
    assert not list(folder.glob(".*partial"))
    assert train(longer, resume="auto").name == "checkpoint-4"


def test_convert_publishes_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    checkpoint = train(tiny_recipe(tmp_path, train__max_steps=2))
    out = tmp_path / "student"
    out.mkdir()
    (out / "parity.json").write_text("an earlier student's")
    before = names_below(tmp_path)
    done = run_limited("convert", str(checkpoint), str(out), "--overwrite")
    assert done.returncode == 2, done.stderr
    assert "can't be written" in done.stderr
    assert names_below(tmp_path) == before
    shutil.rmtree(out)
