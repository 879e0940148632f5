"""The facts of a run as blocks of Markdown: what the student is, how it was made, how it scores."""

from collections.abc import Mapping, Sequence

from lrc.config import Recipe
from lrc.method_config import method_objective
from lrc.report.number_text import MISSING, count_text, duration_text, significant
from lrc.report.plots import Plot
from lrc.report.records import FineTuned, RunData
from lrc.report.scorecard import method_of, scorecard_rows, short_name, teacher_name, training_tokens
from lrc.report.task_records import TABLE_HEADER, task_rows, truncation_text

PLOT_TITLES = {
    "held_out": "Held-out KL and top-1 agreement over training",
    "losses": "Training losses",
    "clone_terms": "Clone errors by layer",
    "start_errors": "Error per layer at the start",
    "effective_rank": "Effective rank per layer",
    "rank_history": "Effective rank over training",
}


def facts_block(data: RunData) -> str:
    """Return the table of what the student is and how it was made."""
    return markdown_table(("Fact", "Value"), _fact_rows(data))


def scores_blocks(data: RunData) -> list[str]:
    """Return the tables of scores on held-out text and on tasks; empty if the student was not scored."""
    blocks = []
    if data.results is not None:
        source = code(short_name(data.results.source))
        blocks.append(f"Held-out text: {source}, {data.results.positions:,} positions.")
        cells = [
            (
                f"{row.label} ({row.unit})" if row.unit else row.label,
                row.teacher.text if row.teacher else MISSING,
                row.student.text,
                row.ratio,
            )
            for row in scorecard_rows(data)
        ]
        blocks.append(markdown_table(("Measure", "Teacher", "Student", "Student / teacher"), cells))
    if data.tasks is not None:
        rows = "the hub's rows" if data.tasks.data == "hub" else f"rows of {code(short_name(data.tasks.data))}"
        limit = "" if data.tasks.limit is None else f", on the first {data.tasks.limit} items of each task"
        blocks.append(
            f"Tasks of lm-evaluation-harness on {rows} in percent ± standard error{limit}; differences are paired item "
            f"by item.{truncation_text(data.tasks)}"
        )
        blocks.append(markdown_table(TABLE_HEADER, task_rows(data.tasks)))
    return blocks


def plot_blocks(plots: dict[str, Plot]) -> list[str]:
    """Return the links of the PNG files that lie beside the page."""
    return [f"![{title}]({name}.png)" for name, title in PLOT_TITLES.items() if name in plots]


def _fact_rows(data: RunData) -> list[tuple[str, str]]:
    rows = [("Teacher", code(teacher_name(data) or MISSING))]
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
    if method_of(data) != "clone":
        rows.append(("Start", "from scratch"))
    elif data.start is not None:
        rows.append(("Start", f"{code(data.start.method)}, {data.start.calibration_tokens:,} calibration tokens"))
    elif data.recipe is not None:
        rows.append(("Start", code(data.recipe.start.method)))
    if data.recipe is not None:
        if data.recipe.method != "clone":
            rows.append(("Method", f"{code(data.recipe.method)}, from scratch"))
        if (phases := data.recipe.phases).dense_share:
            free = f"{phases.dense_tensors}, {phases.dense_form}"
            rows.append(("Dense phase", f"the last {phases.dense_share:.0%} of the steps ({free})"))
        rows.append(("Objective", _objective_text(data)))
        rows += _recipe_rows(data.recipe)
    if data.parity is not None:
        rows.append(("Parity of the export", "passed" if data.parity.passed else "**failed**"))
    return rows + ([] if data.fine_tuned is None else fine_tuned_rows(data.fine_tuned))


def _recipe_rows(recipe: Recipe) -> list[tuple[str, str]]:
    train, student = recipe.train, recipe.student
    sequences = f"{train.batch_size} x {train.gradient_accumulation_steps}"
    projections = f"{student.attention_projections} attn, {student.ffn_projections} ffn"
    shared = ", one for embedding and head" if student.tie_embedding_projection else ""
    shares = _factors(train.rate_shares)
    rows = [
        ("Steps", f"{train.max_steps:,}"),
        ("Batch", f"{sequences} sequences on each process, {recipe.data.sequence_length:,} tokens each"),
        ("Optimiser", f"{code(train.optimizer)}, learning rate {train.learning_rate:g}{shares}, {train.schedule}"),
    ]
    corrected = {"none": "", "outputs": ", MLP outputs corrected", "mlp": ", MLPs corrected"}[student.correction]
    return [*rows, ("Projections", f"{projections}{shared}{corrected}")] if recipe.method == "clone" else rows


def fine_tuned_rows(found: FineTuned) -> list[tuple[str, str]]:
    """Return what the fine-tuning on chats was, in Markdown, as (fact, value)."""
    rows = [
        ("Fine-tuning", f"{found.steps:,} steps on {found.sequences:,} chats of {code(data_name(found.data))}"),
        ("Chat tokens", f"{found.tokens:,}, {found.answer_tokens:,} of them answers that are learnt"),
        ("Teacher KL in fine-tuning", "none" if not found.teacher_kl else f"weight {found.teacher_kl:g}"),
    ]
    if found.left_out or found.truncated:
        rows.append(("Over-long or bad chats", f"{found.truncated:,} cut off, {found.left_out:,} left out"))
    for label, change in (("cross entropy", found.cross_entropy), ("KL to the teacher", found.kl)):
        if change is not None:
            before, after = (significant(value) for value in change)
            rows.append((f"Held-out chats, {label}", f"{before} -> {after} nats per token"))
    return rows


def data_name(path: str) -> str:
    """Return data as a card may name it: what lies on the hub in full, of anything else the last part."""
    return path if path.startswith("hf://") else short_name(path)


def _factors(factors: Mapping[str, float]) -> str:
    """Return `, NAME x FACTOR` for each factor that is not 1."""
    return "".join(f", {name} x {factor:g}" for name, factor in sorted(factors.items()) if factor != 1)


def _objective_text(data: RunData) -> str:
    assert data.recipe is not None
    objective = method_objective(data.recipe.method, data.recipe.objective)
    weighted = _factors(objective.clone_term_weights)
    if objective.clone_depth_slope:
        weighted += f", depth slope {objective.clone_depth_slope:g}"
    direction = "" if objective.kl_direction == "forward" else f"{objective.kl_direction}, "
    return (
        f"{objective.lm_weight:g} x LM + {objective.kl_weight:g} x KL ({direction}T = {objective.temperature:g}, "
        f"{objective.kl_reduction}) + {objective.clone_weight:g} x clone ({objective.clone_error}, "
        f"{objective.clone_reduction}{weighted})"
    )


def markdown_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_one_cell(cell) for cell in line)} |" for line in lines)


def _one_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return text as Markdown code."""
    return f"`{' '.join(text.split()).replace('`', '')}`"


def escaped(text: str) -> str:
    """Return a line of plain words that Markdown and HTML show as they are."""
    marked = "".join(f"\\{character}" if character in "\\`*_[]" else character for character in text)
    return " ".join(marked.replace("<", "&lt;").replace(">", "&gt;").split())
