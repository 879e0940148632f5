"""`benchmarks/at_size.py` at a tiny size: folders that the package reads, numbers that make sense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.speed.at_size import Job, job_table, merge_products, prepare
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


@pytest.mark.slow
def test_all_tasks_run_in_processes_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/at_size.py", "--shape", "tiny", "--tasks", "convert,verb,start"]
    command += ["--tokens", "256", "--length", "32", "--rounds", "1", "--dtype", "float32"]
    command += ["--folder", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert job_table(found) in done.stdout
    for task in ("convert", "verb"):
        assert found[task]["peak_bytes"] > found[task]["peak_bytes_before"] > 50 * 2**20
        assert 0 < found[task]["product_rate_share"] < 1
    assert found["start"]["tokens"] == 2048  # one batch is the least
    assert found["start"]["peak_bytes"] > 0
    assert not list((tmp_path / "work").glob("*-student"))
