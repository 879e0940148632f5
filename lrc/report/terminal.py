"""The scorecard on the terminal: teacher and student side by side."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lrc.report.json_fields import read_json
from lrc.report.task_records import TABLE_HEADER, read_task_results, task_rows


def print_scorecard(results: Path) -> None:
    """Print the tables of an evaluation's `results.json`: held-out text, tasks, or both."""
    facts = read_json(results)
    console = Console()
    if "student" in facts.values:
        _print_held_out(facts.values, console)
    tasks = facts.optional_section("tasks")
    if tasks is not None:
        found = read_task_results(tasks)
        limit = "" if found.limit is None else f", the first {found.limit} items of each"
        if not console.is_terminal:  # a log has no width that the table must fit
            console = Console(width=110)
        table = Table(title=f"tasks (% ± standard error{limit})", title_justify="left", box=SIMPLE_HEAD)
        for place, heading in enumerate(TABLE_HEADER):
            table.add_column(heading.lower(), justify="left" if place < 2 else "right", no_wrap=place < 1)
        for row in task_rows(found):
            table.add_row(*row)
        console.print(table)
        console.print(Text(f"the student with lm-evaluation-harness: {found.command}"), soft_wrap=True)


def _print_held_out(facts: dict[str, Any], console: Console) -> None:
    student, teacher = facts["student"], facts["teacher"]
    table = Table(title="scorecard", title_justify="left")
    table.add_column("measure")
    for heading in ("teacher", "student", "student / teacher"):
        table.add_column(heading, justify="right")
    rows = (
        ("parameters", "parameters", "{:,.0f}"),
        ("file size, MB", "file_size_bytes", "{:,.1f}"),
        ("bits per byte", "bits_per_byte", "{:.3f}"),
        ("perplexity", "perplexity", "{:.2f}"),
        ("prefill, tokens/s", "prefill_tokens_per_second", "{:,.0f}"),
        ("decode, tokens/s", "decode_tokens_per_second", "{:,.1f}"),
    )
    for label, key, form in rows:
        scale = 1e6 if key == "file_size_bytes" else 1
        theirs = form.format(teacher[key] / scale) if teacher else "-"
        ratio = f"{student[key] / teacher[key]:.2f}" if teacher and teacher[key] else "-"
        table.add_row(label, theirs, form.format(student[key] / scale), ratio)
    if student["kl_to_teacher"] is not None:
        table.add_row("KL to teacher, nats", "0", f"{student['kl_to_teacher']:.3f}", "-")
        table.add_row("top-1 agreement", "100 %", f"{student['top1_agreement']:.1%}", "-")
        table.add_row("top-5 agreement", "100 %", f"{student['top5_agreement']:.1%}", "-")
    console.print(table)
    for sample in facts["samples"]:
        console.print(Text(sample["prompt"], style="bold"))
        for name in ("teacher", "student"):
            if sample[name] is not None:
                console.print(Text(f"  {name}: {' '.join(sample[name].split())}"))
