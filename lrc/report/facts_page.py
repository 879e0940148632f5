"""The short facts page of a run in Markdown: what the student is, how it was made, how it scores."""

from collections.abc import Sequence

from lrc.report.number_text import MISSING, count_text, duration_text
from lrc.report.plots import Plot
from lrc.report.records import RunData
from lrc.report.scorecard import scorecard_rows, short_name, summary_text, teacher_name, title_text, training_tokens

PLOT_TITLES = {
    "held_out": "Held-out KL and top-1 agreement over training",
    "losses": "Training losses",
    "clone_terms": "Clone errors by layer",
    "start_errors": "Error per layer at the start",
    "effective_rank": "Effective rank per layer",
}


def facts_markdown(data: RunData, plots: dict[str, Plot]) -> str:
    """Return the facts page; it links the PNG files that lie beside it."""
    blocks = [f"# {_escaped(title_text(data))}"]
    summary = summary_text(data)
    if summary:
        blocks.append(_escaped(summary))
    blocks.append(_table(("Fact", "Value"), _fact_rows(data)))
    rows = scorecard_rows(data)
    if data.results is not None:
        source = _code(short_name(data.results.source))
        blocks.append(f"## Scores\n\nHeld-out text: {source}, {data.results.positions:,} positions.")
        cells = [
            (
                f"{row.label} ({row.unit})" if row.unit else row.label,
                row.teacher.text if row.teacher else MISSING,
                row.student.text,
                row.ratio,
            )
            for row in rows
        ]
        blocks.append(_table(("Measure", "Teacher", "Student", "Student / teacher"), cells))
    if plots:
        blocks.append("## Plots\n\nThe page with captions is [report.html](report.html).")
        blocks += [f"![{title}]({name}.png)" for name, title in PLOT_TITLES.items() if name in plots]
    return "\n\n".join(blocks) + "\n"


def _fact_rows(data: RunData) -> list[tuple[str, str]]:
    rows = [("Teacher", _code(teacher_name(data) or MISSING))]
    if data.results is not None:
        rows.append(("Student", f"{count_text(data.results.student.parameters)} parameters"))
        rows.append(
            ("Hidden size", f"{data.results.teacher_hidden_size or MISSING} -> {data.results.student_hidden_size}")
        )
    elif data.recipe is not None:
        rows.append(("Student", f"hidden size {data.recipe.student.hidden_size}"))
    tokens = training_tokens(data)
    rows.append(("Training tokens", MISSING if tokens is None else f"{tokens:,}"))
    if data.train and data.train[-1].seconds is not None:
        rows.append(("Time", duration_text(data.train[-1].seconds)))
    if data.start is not None:
        rows.append(("Start", f"{_code(data.start.method)}, {data.start.calibration_tokens:,} calibration tokens"))
    elif data.recipe is not None:
        rows.append(("Start", _code(data.recipe.start.method)))
    if data.recipe is not None:
        rows.append(("Objective", _objective_text(data)))
        rows.append(("Learning rate", f"{data.recipe.train.learning_rate:g}, {data.recipe.train.schedule}"))
    if data.parity is not None:
        rows.append(("Parity of the export", "passed" if data.parity.passed else "**failed**"))
    return rows


def _objective_text(data: RunData) -> str:
    assert data.recipe is not None
    objective = data.recipe.objective
    return (
        f"{objective.lm_weight:g} x LM + {objective.kl_weight:g} x KL (T = {objective.temperature:g}, "
        f"{objective.kl_reduction}) + {objective.clone_weight:g} x clone ({objective.clone_error}, "
        f"{objective.clone_reduction})"
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_one_cell(cell) for cell in line)} |" for line in lines)


def _one_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{' '.join(text.split()).replace('`', '')}`"


def _escaped(text: str) -> str:
    """Return a line of plain words that Markdown and HTML show as they are."""
    marked = "".join(f"\\{character}" if character in "\\`*_[]" else character for character in text)
    return " ".join(marked.replace("<", "&lt;").replace(">", "&gt;").split())
