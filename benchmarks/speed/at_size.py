"""Convert and calibrate at the size of real teachers: each in a process of its own, so that its memory is its own.

`convert` merges a checkpoint into a plain folder (`lrc/export/convert.py:write_student`), `verb` is `lrc convert` with
its parity check, `start` the calibrated start (`lrc/models/start.py:fill_start`).
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.random_folders import write_checkpoint, write_teacher
from benchmarks.speed.rates import Product, product_seconds, shape_sizes, timed
from benchmarks.speed.shapes import SHAPES, Shape
from lrc.config import ObjectiveConfig, StartConfig, StudentConfig
from lrc.export.convert import read_source, write_student
from lrc.models.compute import choose_dtype, keep_freed_memory
from lrc.models.pair_model import PairModel
from lrc.models.start import fill_start
from lrc.models.teacher import load_model
from lrc.plan.sizes import Sizes
from lrc.verbs.convert import convert as convert_verb

GIB = 2**30
DEPTHS = {"qwen7b": 28, "gqa3b": 28, "demo": 30}
"""Layers of the real teachers, for what their trained tensors take."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one child process does."""

    task: str
    shape: str
    layers: int
    folder: str
    tokens: int
    length: int
    rounds: int
    dtype: str
    max_shard_bytes: int

    @property
    def sized(self) -> Shape:
        """The shape with its depth."""
        return replace(SHAPES[self.shape], layers=self.layers)

    def path(self, name: str) -> Path:
        """A folder of this shape and depth."""
        return Path(self.folder) / f"{self.shape}-{self.layers}-{name}"


def run_job(job: Job) -> dict[str, Any]:
    """Do a job in a child process; returns its numbers."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-m", "benchmarks.speed.at_size", json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{job.task} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def prepare(job: Job, stored: torch.dtype) -> None:
    """Write teacher and checkpoint once."""
    write_teacher(job.sized, job.path("teacher"), stored)
    write_checkpoint(job.sized, job.path("checkpoint"))


def peak_resident_bytes() -> int:
    """The most memory that this process has had at once, file pages it has mapped included (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not say how much memory a process has had")


def convert(job: Job) -> dict[str, Any]:
    """Merge a checkpoint into a folder, without the parity check, or with it for the task `verb`."""
    shape, sizes = job.sized, shape_sizes(job.sized)
    student = StudentConfig(hidden_size=shape.d_student, tie_embedding_projection=shape.tie_projection)
    draft, before = job.path("student"), peak_resident_bytes()
    shutil.rmtree(draft, ignore_errors=True)
    teacher, checkpoint = str(job.path("teacher")), job.path("checkpoint")
    began = time.perf_counter()
    if job.task == "verb":
        convert_verb(checkpoint, draft, teacher=teacher, student=student, max_shard_bytes=job.max_shard_bytes)
    else:
        draft.mkdir()
        source = read_source(checkpoint, teacher=teacher, student=student)
        write_student(source, draft, dtype="teacher", max_shard_bytes=job.max_shard_bytes)
    seconds = time.perf_counter() - began
    peak = max(before, peak_resident_bytes())  # the kernel brings its count up to date in steps of some pages
    written = sum(path.stat().st_size for path in draft.glob("*.safetensors"))
    shutil.rmtree(draft)
    products = merge_products(sizes)
    flops = sum(product.flops for product in products)
    at_rate = sum(product_seconds(product, dtype=torch.float32, device=CPU) for product in products)
    trained = 4 * sizes.trained_parameters
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "peak_bytes_before": before,
        "student_bytes": written,
        "trained_bytes": trained,
        "trained_bytes_at_full_depth": 4 * shape_sizes(full_depth(job)).trained_parameters,
        "merge_flops": flops,
        "flops_per_second": flops / seconds,
        "seconds_at_product_rate": at_rate,
        "product_rate_share": at_rate / seconds,
    }


def full_depth(job: Job) -> Shape:
    """The shape with all layers of the real teacher."""
    return replace(job.sized, layers=DEPTHS.get(job.shape, job.layers))


def merge_products(sizes: Sizes) -> list[Product]:
    """List every product of a conversion."""
    products = []
    for name, (_, axis) in sizes.plan.merges.items():
        size = sizes.teacher_shape(name)
        others = prod(size) // size[axis]
        products.append(
            Product(rows=others, inner=size[axis], columns=sizes.d_student)
            if axis
            else Product(rows=sizes.d_student, inner=size[0], columns=others, left_transposed=True)
        )
    return products


@torch.no_grad()
def start(job: Job) -> dict[str, Any]:
    """Time the calibrated start beside a teacher forward and a student forward over the same tokens."""
    keep_freed_memory()  # as `lrc train` does
    shape, dtype = job.sized, choose_dtype(job.dtype, CPU)
    teacher = load_model(str(job.path("teacher")), dtype=dtype, device=CPU)
    objective = ObjectiveConfig()
    pair = PairModel(teacher, hidden_size=shape.d_student, variant=shape.variant, objective=objective)
    student: Any = AutoModelForCausalLM.from_config(pair.student_config, dtype=dtype).eval()
    rows = max(1, 2048 // job.length)
    generator = torch.Generator().manual_seed(2)
    count = max(1, job.tokens // (rows * job.length))
    batches = [torch.randint(0, shape.vocabulary, (rows, job.length), generator=generator) for _ in range(count)]
    tokens = sum(batch.numel() for batch in batches)
    settings = StartConfig(method="calibrated", tokens=tokens)

    def forward(model: Any) -> None:
        for batch in batches:
            model.get_submodule(pair.architecture.base)(input_ids=batch, use_cache=False)

    def calibrated() -> None:
        fill_start(pair, teacher, settings, batches, seed=0)

    works = {"teacher": lambda: forward(teacher), "student": lambda: forward(student), "start": calibrated}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    forward(teacher)
    for _ in range(job.rounds):
        for name, work in works.items():
            seconds[name].append(timed(work, CPU))
    sizes, peak = shape_sizes(shape), peak_bytes(calibrated, CPU)
    layer_weights = sum(prod(size) for name, size in sizes.teacher.items() if name.startswith(sizes.layer(0)))
    streams = tokens * (shape.hidden + shape.d_student) * dtype.itemsize
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    layer = layer_weights * dtype.itemsize + streams
    return {
        "dtype": str(dtype),
        "tokens": tokens,
        "seconds": seconds,
        "teacher_forwards": (medians["start"] - medians["student"]) / medians["teacher"],
        "time_over_target": medians["start"] / (1.5 * medians["teacher"] + medians["student"]),
        "peak_bytes": peak,
        "layer_weights_bytes": layer_weights * dtype.itemsize,
        "streams_bytes": streams,
        "peak_over_layer": peak / layer,
    }


def job_table(found: dict[str, dict[str, Any]]) -> str:
    """Write what the jobs found as a Markdown table."""
    lines = ["| measure | value | target |", "| --- | --- | --- |"]
    for task, values in found.items():
        if task == "start":
            continue
        lines += [
            f"| {task}: peak memory of the process | {values['peak_bytes'] / GIB:.2f} GiB, "
            f"{values['peak_bytes_before'] / GIB:.2f} before it began | < 4 GiB |",
            f"| {task}: trained tensors, here and at full depth | {values['trained_bytes'] / GIB:.2f}, "
            f"{values['trained_bytes_at_full_depth'] / GIB:.2f} GiB | |",
            f"| {task}: seconds, GFLOP/s of the merges | {values['seconds']:.1f}, "
            f"{values['flops_per_second'] / 1e9:,.0f} | |",
            f"| {task}: share of the float32 product rate | {values['product_rate_share']:.0%} | >= 60 % |",
        ]
    if "start" in found:
        values = found["start"]
        seconds = {name: statistics.median(times) for name, times in values["seconds"].items()}
        lines += [
            f"| start: seconds for {values['tokens']:,} tokens | {seconds['start']:.1f}; teacher forward "
            f"{seconds['teacher']:.1f}, student forward {seconds['student']:.1f} | |",
            f"| start: teacher forwards, beside one student forward | {values['teacher_forwards']:.2f} | <= 1.5 |",
            f"| start: peak memory above the models | {values['peak_bytes'] / GIB:.2f} GiB | |",
            f"| start: in layers (weights {values['layer_weights_bytes'] / GIB:.2f} + both streams of all tokens "
            f"{values['streams_bytes'] / GIB:.2f} GiB) | {values['peak_over_layer']:.2f} | <= 2 |",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    given = Job(**json.loads(sys.argv[1]))
    print(json.dumps(start(given) if given.task == "start" else convert(given)))
