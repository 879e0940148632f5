"""Two ranks agree on a batch that one of them finds bad, go back together, and train on as one process does."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lrc.training.launch import write_recipe
from lrc.training.run_state import RunState
from tests.tiny import tiny_recipe, write_rows

pytestmark = pytest.mark.slow

STEPS, SAVE_STEPS = 22, 4
POISON = {5: [float("nan"), 0.0], 18: [1e6, -1e9], 21: [1.0, 1e6]}
"""Batch to what it does on the last rank: no number, an exploding gradient below a small loss, an exploding loss."""
BACK = {5: "rollback to step 4", 18: "rollback to step 16", 21: "rollback to step 16"}
STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
HERE = [name for name in STRATEGIES if not name.startswith("zero") or importlib.util.find_spec("deepspeed")]


def job(root: Path, name: str) -> dict[str, Any]:
    ranks = 1 if name == "one" else 2
    settings = {
        "start__method": "random",
        "data__held_out": None,
        "train__max_steps": STEPS,
        "train__log_steps": 1,
        "train__save_steps": SAVE_STEPS,
        "train__save_total_limit": None,
        "train__on_divergence": "rollback",
        "train__batch_size": 4 // ranks,
        "train__strategy": "auto" if name == "one" else name,
    }
    write_recipe(root / f"{name}.yaml", tiny_recipe(root, run=str(root / name), **settings))
    return {"name": name, "recipe": str(root / f"{name}.yaml"), "ranks": ranks, "resume": None, "poison": POISON}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("divergence")
    tiny_recipe(root)
    write_rows(root / "train.jsonl", rows=120, ragged=True)
    jobs = [job(root, name) for name in ("one", *HERE)]
    (root / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("rank_runs.py")), str(root / "jobs.json")],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{each['name']} {[0] * each['ranks']}" for each in jobs], done.stdout
    return root


def losses_of(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return {line["step"]: line["loss"] for line in lines}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_ranks_go_back_and_leave_the_batch_out(root: Path, strategy: str) -> None:
    if strategy not in HERE:
        pytest.skip("deepspeed is not installed")
    run = root / strategy / "train"
    records = [json.loads(line) for line in (run / "divergence.jsonl").read_text().splitlines()]
    assert [(record["batch"], record["action"]) for record in records] == list(BACK.items())
    reasons = ("must be finite", "the gradient norm must be at most", "the loss must be at most")
    assert all(reason in record["reason"] for record, reason in zip(records, reasons, strict=True))
    state = RunState.from_json((run / f"checkpoint-{STEPS}" / "state.json").read_text())
    assert state.skipped_batches == tuple(POISON)
    assert losses_of(root / strategy) == pytest.approx(losses_of(root / "one"), abs=1e-5)
