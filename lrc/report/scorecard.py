"""The figures of a run as rows of text: the headline's tiles, the scorecard, and the sentence that sums the run up.

Each number is kept as it was read beside the text that shows it, so that the page carries both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from lrc.method_config import Method
from lrc.report.number_text import bytes_text, count_text, percent, ratio_text, significant, whole
from lrc.report.records import Card, RunData

Number = float | int | None
ToText = Callable[[Number], str]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number as it was read, and as it is shown."""

    exact: Number
    text: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the scorecard."""

    label: str
    unit: str
    """Unit, or what the number is measured in."""
    better: str
    """`lower`, `higher`, or empty where neither is better as such."""
    teacher: Value | None
    """None if the measure only exists for the student, or no teacher was scored."""
    student: Value
    ratio: str
    """Student over teacher."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure of the headline."""

    label: str
    value: Value
    unit: str
    note: str
    """What to compare it with."""


def short_name(name: str) -> str:
    """Return the last part of a model's folder, hub id or `embedded:` name."""
    return PurePath(name.replace("\\", "/")).name.rpartition(":")[2] or name


def teacher_name(data: RunData) -> str | None:
    """Return the teacher as the recipe names it, else as the scorecard does."""
    if data.recipe is not None:
        return short_name(data.recipe.teacher)
    if data.results is not None and data.results.teacher is not None:
        return short_name(data.results.teacher.name)
    return None


def method_of(data: RunData) -> Method:
    """Return the recipe's method; a run without a recipe counts as a clone."""
    return "clone" if data.recipe is None else data.recipe.method


def training_tokens(data: RunData) -> int | None:
    """Return the training tokens seen by the newest line of the metrics."""
    seen = [point.tokens for point in data.train] + [point.tokens for point in data.held_out]
    return max(seen) if seen else None


def scorecard_rows(data: RunData) -> list[Row]:
    """Return the scorecard; empty if the student was not scored."""
    results = data.results
    if results is None:
        return []
    teacher, student = results.teacher, results.student
    wide, narrow = results.teacher_hidden_size, results.student_hidden_size

    def both(label: str, unit: str, better: str, to_text: ToText, measure: Callable[[Card], Number]) -> Row:
        return _row(label, unit, better, to_text, None if teacher is None else measure(teacher), measure(student))

    speed = "tokens per second"
    return [
        both("Parameters", "", "", count_text, lambda card: card.parameters),
        _row("Hidden size", "", "", whole, wide, narrow),
        both("Weight files", "", "", bytes_text, lambda card: card.file_size_bytes),
        both("Cross entropy", "nats per token", "lower", significant, lambda card: card.cross_entropy),
        both("Perplexity", "per token", "lower", significant, lambda card: card.perplexity),
        both("Bits per byte", "", "lower", significant, lambda card: card.bits_per_byte),
        _row("KL to the teacher", "nats per token", "lower", significant, None, results.kl_to_teacher),
        _row("Top-1 agreement", "of positions", "higher", percent, None, results.top1_agreement),
        _row("Top-5 agreement", "of positions", "higher", percent, None, results.top5_agreement),
        both("Prefill", speed, "higher", significant, lambda card: card.prefill_tokens_per_second),
        both("Decode", speed, "higher", significant, lambda card: card.decode_tokens_per_second),
    ]


def _row(label: str, unit: str, better: str, to_text: ToText, teacher: Number, student: Number) -> Row:
    return Row(
        label=label,
        unit=unit,
        better=better,
        teacher=None if teacher is None else Value(exact=teacher, text=to_text(teacher)),
        student=Value(exact=student, text=to_text(student)),
        ratio=ratio_text(student, teacher),
    )


def headline_tiles(data: RunData) -> list[Tile]:
    """Return the headline's figures: of the scorecard, or of the last held-out measure if there is no scorecard."""
    if data.results is not None:
        rows = {row.label: row for row in scorecard_rows(data)}
        shown = ("Parameters", "Hidden size", "KL to the teacher", "Top-1 agreement", "Bits per byte")
        return [_tile(rows[label]) for label in shown if rows[label].student.exact is not None]
    if not data.held_out:
        return []
    first, last = data.held_out[0], data.held_out[-1]
    is_trained = first.step == 0 and last.step > 0
    kl_before = f"{significant(first.kl, 3)} before training" if is_trained else ""
    agreement_before = f"{percent(first.top1_agreement)} before training" if is_trained else ""
    kl = Value(exact=last.kl, text=significant(last.kl, 3))
    agreement = Value(exact=last.top1_agreement, text=percent(last.top1_agreement))
    return [
        Tile(label="KL to the teacher", value=kl, unit="nats per token", note=kl_before),
        Tile(label="Top-1 agreement", value=agreement, unit="of positions", note=agreement_before),
    ]


def _tile(row: Row) -> Tile:
    note = "" if row.teacher is None else f"teacher {row.teacher.text}"
    return Tile(label=row.label, value=row.student, unit=row.unit, note=note)


def title_text(data: RunData) -> str:
    """Return the page's heading."""
    teacher, method = teacher_name(data) or "a teacher", method_of(data)
    if method == "clone" and data.results is not None and data.results.teacher_hidden_size is not None:
        wide, narrow = data.results.teacher_hidden_size, data.results.student_hidden_size
        return f"{teacher}, cloned from width {wide:,} to {narrow:,}"
    narrow_size = data.results.student_hidden_size if data.results else data.recipe and data.recipe.student.hidden_size
    width = f" at width {narrow_size:,}" if narrow_size else ""
    if method != "clone":
        return f"{teacher}'s shape{width}, trained from scratch by {method}"
    return f"A student of {teacher}{width}"


def summary_text(data: RunData) -> str:
    """Return up to three sentences that say what came out, as far as the run knows it."""
    sentences = []
    results, tokens = data.results, training_tokens(data)
    if results is not None and results.teacher is not None and results.top1_agreement is not None:
        narrow, wide = count_text(results.student.parameters, 3), count_text(results.teacher.parameters, 3)
        sentences.append(
            f"The student has {narrow} parameters to the teacher's {wide} and picks the teacher's most likely next "
            f"token at {percent(results.top1_agreement)} of the held-out positions."
        )
    if tokens:
        start, method = f" from the {data.start.method} start" if data.start else "", method_of(data)
        if method != "clone":
            start = " from scratch" + (", without its teacher" if method == "origin" else "")
        done = "trained" if method == "origin" else "distilled"
        sentences.append(f"{'It' if sentences else 'The student'} was {done} on {count_text(tokens, 3)} tokens{start}.")
    first, last = (data.held_out[0], data.held_out[-1]) if data.held_out else (None, None)
    if first and last and first.step == 0 < last.step and first.kl is not None and last.kl is not None:
        before, after = significant(first.kl, 3), significant(last.kl, 3)
        sentences.append(f"Training took the held-out KL from {before} to {after} nats per token.")
    return " ".join(sentences)


def collapse_text(data: RunData) -> str:
    """Return the warning of a student whose stream has collapsed, by its last held-out measure; else nothing."""
    last = data.held_out[-1] if data.held_out else None
    if last is None or not last.has_collapsed:
        return ""
    share = percent(last.effective_rank_share)
    return (
        "The student's residual stream has collapsed: it uses few of its directions (effective rank "
        f"{share} of what its width allows). Train longer, or start from start.method=calibrated and train with "
        "objective.temperature=1 and relative clone errors."
    )
