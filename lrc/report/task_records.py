"""The benchmark scores of `results.json` as frozen records, and their rows for terminal, page and card."""

from collections.abc import Sequence
from dataclasses import dataclass

from lrc.report.json_fields import Fields
from lrc.report.number_text import MISSING

ROLES = ("student", "teacher")
TABLE_HEADER = ("Task", "Metric", "Items", "Teacher", "Student", "Difference", "95 % interval")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over items, and its standard error if it is known."""

    value: float | None
    standard_error: float | None
    interval: tuple[float | None, ...] | None = None
    """95 % interval; only of a difference."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One task, or the average of several."""

    task: str
    metric: str
    """Metric and filter; empty for the average."""
    items: int | None
    num_fewshot: int | None
    teacher: Score | None
    student: Score | None
    difference: Score | None
    """Student minus teacher, paired item by item."""


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """The benchmarks of one evaluation."""

    student: str
    teacher: str | None
    data: str
    """`hub`, or the folder of local data."""
    limit: int | None
    """Items of each task, None if all were scored."""
    scores: tuple[TaskScore, ...]
    average: TaskScore | None
    """None for a single task, or if a task's score is no mean."""
    command: str
    """lm-evaluation-harness's own command for the student's scores."""
    truncated: dict[str, int]
    """Requests that lost their beginning, by `student` and `teacher`; empty in results from before that was counted."""


def read_task_results(values: Fields) -> TaskResults:
    """Read the section `tasks` of results.json.

    Raises:
        DataError: A value is missing or of the wrong kind.
    """
    models, counts = values.section("models"), values.optional_section("truncated")
    rows = tuple(_row(row, task=row.text("task"), metric=row.text("metric")) for row in values.sections("scores"))
    mean = values.optional_section("average")
    return TaskResults(
        student=models.text("student"),
        teacher=models.optional_text("teacher"),
        data=values.text("data"),
        limit=values.optional_count("limit"),
        scores=rows,
        average=None if mean is None else _row(mean, task=f"average of {len(rows)}", metric=""),
        command=values.text("command"),
        truncated={role: counts.count(role) for role in ROLES if counts is not None and role in counts.values},
    )


def truncation_text(results: TaskResults) -> str:
    """Say how many requests were longer than a model's context, with a space in front; empty if none was."""
    cut = [f"{count:,} of the {role}" for role, count in results.truncated.items() if count]
    return f" Requests longer than the context, so cut at the front: {', '.join(cut)}." if cut else ""


def _row(values: Fields, *, task: str, metric: str) -> TaskScore:
    return TaskScore(
        task=task,
        metric=metric,
        items=values.optional_count("items"),
        num_fewshot=values.optional_count("num_fewshot"),
        teacher=_score(values.optional_section("teacher")),
        student=_score(values.optional_section("student")),
        difference=_score(values.optional_section("difference")),
    )


def _score(values: Fields | None) -> Score | None:
    if values is None:
        return None
    return Score(
        value=values.number("value"),
        standard_error=values.number("standard_error"),
        interval=values.optional_numbers("interval"),
    )


def task_rows(results: TaskResults) -> list[tuple[str, ...]]:
    """Return the table's cells, a row a task and the average last; shares in percent."""
    shown = [*results.scores, *([results.average] if results.average else [])]
    return [
        (
            row.task,
            row.metric.removesuffix(",none"),
            MISSING if row.items is None else f"{row.items:,}",
            _text(row.teacher, row.metric),
            _text(row.student, row.metric),
            _text(row.difference, row.metric, sign="+"),
            _interval_text(row.difference),
        )
        for row in shown
    ]


def _text(score: Score | None, metric: str, sign: str = "") -> str:
    if score is None or score.value is None:
        return MISSING
    if score.standard_error is None and not _is_share(metric):
        return f"{score.value:{sign},.3f}"
    error = "" if score.standard_error is None else f" ± {100 * score.standard_error:.1f}"
    return f"{100 * score.value:{sign}.2f}{error}"


def _is_share(metric: str) -> bool:
    return not metric or metric.split(",")[0] in {"acc", "acc_norm", "exact_match", "pass@1", "pass_at_1"}


def _interval_text(score: Score | None) -> str:
    ends: Sequence[float | None] = () if score is None or score.interval is None else score.interval
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return MISSING
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"
