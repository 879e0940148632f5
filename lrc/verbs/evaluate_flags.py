"""The flags of `lrc evaluate`, as `lrc/cli.py` registers them; what they need is imported when they are used."""

from pathlib import Path

import tyro

from lrc.config import EvaluateConfig


def evaluate_verb(
    model: tyro.conf.Positional[str],
    /,
    *,
    out: Path,
    held_out: str | None = None,
    tasks: str | None = None,
    data_dir: str | None = None,
    teacher: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: str = "auto",
    allow_code: bool = False,
    write_tasks: Path | None = None,
    tokens: int = EvaluateConfig.tokens,
    sequence_length: int = EvaluateConfig.sequence_length,
    samples: int = EvaluateConfig.samples,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Score a model folder on held-out text, on benchmarks (lm-evaluation-harness) or both, beside its teacher.

    Args:
        model: Folder or hub id.
        out: Folder that results.json is written to.
        held_out: JSON lines with text or input_ids: file, folder or glob ("embedded:held-out": the demo's).
        tasks: Benchmarks by name, separated by commas; "seed": the published nine, "reasoning": gsm8k and code.
        data_dir: Folder with NAME.jsonl a task, or "embedded:benchmarks" (default: the hub).
        teacher: Folder or hub id to compare with.
        limit: Items of each task, for a quick look.
        num_fewshot: Examples in each prompt (default: what the task says, else 0).
        batch_size: Prompts at once; "auto" is the most that fit on a GPU, 1 on a CPU.
        allow_code: Run tasks that execute what the model writes (humaneval, mbpp).
        write_tasks: New folder for the task files of --data-dir, to use with lm_eval --include_path.
        tokens: Held-out tokens.
        sequence_length: Window of the scored text.
        samples: Prompts continued by both models.
        overwrite: Replace earlier results.
        dry_run: Check everything, write no results.
    """
    from lrc.errors import ConfigError
    from lrc.report.terminal import print_scorecard
    from lrc.verbs.evaluate import evaluate
    from lrc.verbs.evaluate_tasks import TaskSettings

    chosen = None
    if tasks is not None:
        chosen = TaskSettings(
            tasks=tasks,
            data_dir=data_dir,
            write_tasks=write_tasks,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            allow_code=allow_code,
        )
    elif (data_dir, limit, num_fewshot, write_tasks, allow_code) != (None, None, None, None, False):
        raise ConfigError(
            "--data-dir, --limit, --num-fewshot, --write-tasks and --allow-code say how to score tasks, but none is "
            "named. Add --tasks."
        )
    settings = EvaluateConfig(tokens=tokens, sequence_length=sequence_length, samples=samples)
    results = evaluate(
        model,
        out=out,
        held_out=held_out,
        teacher=teacher,
        settings=settings,
        tasks=chosen,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if not dry_run:
        print_scorecard(results)
