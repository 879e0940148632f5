"""`lrc demo`: a whole run on the embedded teacher, from nothing to a scored student, on a CPU."""

import os
import shutil
import sys
import time
from importlib.resources import files
from pathlib import Path

import torch

from lrc.config import Recipe, load_recipe
from lrc.models.compute import choose_device, choose_dtype
from lrc.report.terminal import print_scorecard
from lrc.training.metrics import format_seconds
from lrc.verbs.convert import convert
from lrc.verbs.evaluate import evaluate
from lrc.verbs.report import report
from lrc.verbs.train import train

LONGER = (
    "start.tokens=65536",
    "train.max_steps=120",
    "train.learning_rate=6e-5",
    "train.warmup_ratio=0.1",
    "train.save_steps=30",
    "train.evaluate_steps=30",
)
"""The demo on a machine whose bfloat16 is fast: more text and more steps in the same quarter of an hour."""


def demo_recipe(overrides: tuple[str, ...] = ()) -> Recipe:
    """Load the demo's recipe (it comes with the package), `LONGER` where it computes in bfloat16; apply overrides."""
    path = Path(str(files("lrc.verbs") / "demo.yaml"))
    recipe = load_recipe(path, overrides)
    is_fast = choose_dtype(recipe.train.compute_dtype, choose_device(recipe.train.device)) is torch.bfloat16
    return load_recipe(path, (*LONGER, *overrides)) if is_fast else recipe


def demo(overrides: tuple[str, ...] = (), *, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Run teacher, start, training, conversion, scorecard and report; print where everything lies.

    Args:
        overrides: `section.key=value` over the demo's recipe.
        overwrite: Delete an earlier demo first; without it a finished or interrupted one is gone on with.
        dry_run: Fetch teacher and text, check everything, then stop.

    Returns:
        The report's page.
    """
    began = time.monotonic()
    recipe = demo_recipe(overrides)
    run = Path(recipe.run)
    student, results = run / "convert", run / "evaluate"
    assert recipe.data.held_out is not None
    last = train(recipe, resume=None if overwrite else "auto", overwrite=overwrite, dry_run=dry_run)
    if dry_run:
        return run / "report" / "report.html"
    convert(
        last,
        student,
        dtype=recipe.convert.dtype,
        max_shard_bytes=recipe.convert.max_shard_bytes,
        trust_remote_code=recipe.trust_remote_code,
        overwrite=True,
    )
    evaluate(
        student,
        out=results,
        held_out=recipe.data.held_out,
        teacher=recipe.teacher,
        settings=recipe.evaluate,
        overwrite=True,
    )
    page = report(run)
    print_scorecard(results / "results.json")
    print(f"\nstudent  {student}")
    print(f"chat     {_command()} chat {student}")
    print(f"report   {page}")
    print(f"took     {format_seconds(time.monotonic() - began)}")
    return page


def _command() -> str:
    """The word that starts this program from the user's shell: `lrc`, or where it lies if that is not on the path."""
    if shutil.which("lrc"):
        return "lrc"
    return os.path.relpath(Path(sys.executable).with_name("lrc"))
