"""The flags of `lrc evaluate`, as `lrc/cli.py` registers them; what they need is imported when they are used."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from lrc.verbs.task_settings import NO_TASKS, TaskSettings


def evaluate_verb(
    model: tyro.conf.Positional[str],
    /,
    *,
    out: Path,
    held_out: str | None = None,
    tasks: Annotated[TaskSettings, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")] = NO_TASKS,
    teacher: str | None = None,
    tokens: int | None = None,
    sequence_length: int | None = None,
    samples: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Score a model folder on held-out text, on benchmarks or both, beside its teacher if one is named.

    Of a run's folder (RUN/convert, RUN/sft) what no flag says is as the run's recipe has it (evaluate.*).

    Args:
        model: Folder or hub id.
        out: Folder that results.json is written to.
        held_out: JSON lines with text or input_ids: file, folder or glob ("embedded:held-out": the demo's).
        tasks: Benchmarks through lm-evaluation-harness.
        teacher: Folder or hub id to compare with.
        tokens: Held-out tokens (16384).
        sequence_length: Window of the scored text (512).
        samples: Prompts continued by both models (4).
        overwrite: Replace earlier results.
        dry_run: Check everything, write no results.
    """
    from lrc.report.terminal import print_scorecard
    from lrc.verbs.evaluate import evaluate
    from lrc.verbs.run_recipe import evaluate_settings

    settings = evaluate_settings(model)
    results = evaluate(
        model,
        out=out,
        held_out=held_out,
        teacher=teacher,
        settings=replace(
            settings,
            tokens=settings.tokens if tokens is None else tokens,
            sequence_length=settings.sequence_length if sequence_length is None else sequence_length,
            samples=settings.samples if samples is None else samples,
        ),
        tasks=tasks,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if not dry_run:
        print_scorecard(results)
