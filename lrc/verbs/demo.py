"""`lrc demo`: a whole run on the embedded teacher, from nothing to a scored student, on a CPU."""

import math
import os
import shutil
import sys
import time
from importlib.resources import files
from pathlib import Path

from lrc.config import Recipe, load_recipe
from lrc.errors import ConfigError
from lrc.models.compute import choose_device, choose_dtype, products_flops_per_second
from lrc.report.terminal import print_scorecard
from lrc.training.metrics import format_seconds
from lrc.verbs.convert import convert
from lrc.verbs.evaluate import evaluate
from lrc.verbs.report import report
from lrc.verbs.train import train

LENGTHS: dict[float, tuple[str, ...]] = {
    600e9: ("start.tokens=65536", "train.max_steps=100", "train.save_steps=25", "train.evaluate_steps=null"),
    250e9: ("start.tokens=65536", "train.max_steps=60", "train.save_steps=20", "train.evaluate_steps=null"),
    130e9: ("start.tokens=32768", "train.max_steps=40", "train.save_steps=20", "train.evaluate_steps=null"),
    80e9: ("train.max_steps=20", "train.save_steps=10", "train.evaluate_steps=null"),
}
"""More text and more steps in the same quarter of an hour, by the FLOP/s that this CPU's matrix products reach."""


def demo_recipe(overrides: tuple[str, ...] = (), *, anew: bool = False) -> Recipe:
    """Load the demo's recipe (it comes with the package), longer on a fast CPU; apply overrides.

    A demo that is under way keeps the length, and the corrections, that it was begun with, unless it begins `anew`.
    """
    recipes = _of_each_length(overrides)
    begun = Path(recipes[0].run) / "train" / "recipe.yaml"
    if begun.is_file() and not anew:
        found = load_recipe(begun)
        is_named = any(override.startswith("student.correction=") for override in overrides)
        if not is_named and found.student.correction != recipes[0].student.correction:  # of an earlier version
            recipes = _of_each_length((*overrides, f"student.correction={found.student.correction}"))
        same = [recipe for recipe in recipes if recipe.train.max_steps == found.train.max_steps]
        if same:
            return same[0]
    device = choose_device(recipes[0].train.device)
    rate = math.inf
    if device.type == "cpu":
        rate = products_flops_per_second(choose_dtype(recipes[0].train.compute_dtype, device))
    return next(recipe for least, recipe in zip((*LENGTHS, 0.0), recipes, strict=True) if rate >= least)


def _of_each_length(overrides: tuple[str, ...]) -> list[Recipe]:
    """Load the recipe in every length, the longest first."""
    path = Path(str(files("lrc.verbs") / "demo.yaml"))
    return [load_recipe(path, (*length, *overrides)) for length in (*LENGTHS.values(), ())]


def demo(overrides: tuple[str, ...] = (), *, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Run teacher, start, training, conversion, scorecard and report; print where everything lies.

    Args:
        overrides: `section.key=value` over the demo's recipe.
        overwrite: Delete an earlier demo first; without it a finished or interrupted one is gone on with.
        dry_run: Fetch teacher and text, check everything, then stop.

    Returns:
        The report's page.

    Raises:
        ConfigError: The overrides leave nothing to score; nothing is begun.
    """
    began = time.monotonic()
    recipe = demo_recipe(overrides, anew=overwrite)
    run = Path(recipe.run)
    student, results = run / "convert", run / "evaluate"
    if recipe.data.held_out is None:
        raise ConfigError(
            "data.held_out must name the text that the demo's scorecard is of, and names none. Leave that override out."
        )
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
