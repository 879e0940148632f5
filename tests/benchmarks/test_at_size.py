"""`benchmarks/at_size.py` at a tiny size: folders that the package reads, numbers that make sense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.speed.at_size import Job, convert, job_table, merge_products, prepare, start
from benchmarks.speed.rates import shape_sizes
from benchmarks.speed.shapes import SHAPES
from lrc.models.teacher import load_model


def job(folder: Path, task: str) -> Job:
    return Job(
        task=task,
        shape="tiny",
        layers=2,
        folder=str(folder),
        tokens=256,
        length=32,
        rounds=1,
        dtype="float32",
        max_shard_bytes=10**9,
    )


def test_the_written_teacher_is_whole_and_is_written_once(tmp_path: Path) -> None:
    given = job(tmp_path, "convert")
    prepare(given, torch.float32)
    weights = given.path("teacher") / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    prepare(given, torch.float32)
    assert weights.stat().st_mtime_ns == stamp
    model = load_model(str(given.path("teacher")), dtype=torch.float32, device=torch.device("cpu"))
    rows = model.get_parameter("model.embed_tokens.weight")
    assert len(torch.unique(rows, dim=0)) == SHAPES["tiny"].vocabulary
    assert torch.equal(model.get_parameter("model.norm.weight"), torch.ones(SHAPES["tiny"].hidden))


def test_the_products_of_a_conversion_are_every_merge() -> None:
    shape, sizes = SHAPES["tiny"], shape_sizes(SHAPES["tiny"])
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    values = shape.layers * (attention + 3 * shape.hidden * shape.ffn) + 2 * shape.vocabulary * shape.hidden
    assert sum(product.flops for product in merge_products(sizes)) == 2 * shape.d_student * values


@pytest.mark.parametrize("task", ["convert", "verb"])
def test_a_conversion_is_measured_and_leaves_nothing(tmp_path: Path, task: str) -> None:
    given = job(tmp_path, task)
    prepare(given, torch.float32)
    found = convert(given)
    assert found["peak_bytes"] >= found["peak_bytes_before"] > 50 * 2**20
    assert 0 < found["product_rate_share"] < 1
    assert found["student_bytes"] > 4 * shape_sizes(given.sized).student_parameters
    assert not given.path("student").exists()
    assert f"| {task}: share of the float32 product rate |" in job_table({task: found})


def test_the_start_is_measured_in_forwards_and_layers(tmp_path: Path) -> None:
    given = job(tmp_path, "start")
    prepare(given, torch.float32)
    found = start(given)
    assert found["tokens"] == 2048  # one batch is the least
    assert found["teacher_forwards"] > 0
    layer = found["layer_weights_bytes"] + found["streams_bytes"]
    assert found["streams_bytes"] == 4 * 2048 * (64 + 32)
    assert found["peak_over_layer"] == found["peak_bytes"] / layer > 0


@pytest.mark.slow
def test_the_command_runs_tasks_in_processes_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/at_size.py", "--shape", "tiny", "--tasks", "convert"]
    command += ["--folder", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert job_table(json.loads((tmp_path / "out.json").read_text())) in done.stdout
