"""The cells' JSON files as rows: the table, tokens to reach a KL, mean and spread over seeds."""

import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lrc.errors import DataError

FORMAT = "lrc-quality-cell-1"
Result = dict[str, Any]


def read_results(folders: Iterable[Path]) -> list[Result]:
    """Read every cell of some folders, by name; of two files of one cell the later folder's counts.

    Raises:
        DataError: A file is damaged.
    """
    found: dict[str, Result] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(
                    f"{path} must be the JSON of a cell, but it can't be read: {error}. Delete it."
                ) from error
            if isinstance(value, dict) and value.get("format") == FORMAT:
                found[value["cell"]] = value
    return [found[name] for name in sorted(found)]


def tokens_to_reach(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Return the training tokens at which a falling curve first reaches a level, or None if it does not.

    Between two points the level falls linearly over the logarithm of the tokens, as learning curves nearly do. The
    start has 0 tokens and no logarithm: from it to the first point the line is straight in the tokens themselves.

    Args:
        points: (tokens, value), by tokens.
        level: What is to be reached.
    """
    if points and points[0][1] <= level:
        return points[0][0]
    for (before, high), (after, low) in itertools.pairwise(points):
        if high > level >= low:
            share = (high - level) / (high - low)
            if before == 0:
                return share * after
            return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return None


def curve(result: Result, *, text: str = "held_out", measure: str = "kl") -> list[tuple[float, float]]:
    """Return (tokens, value) of a measure on one of the texts."""
    return [(point["tokens"], point[text][measure]) for point in result["points"]]


def mean_text(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Word a mean; of two or more seeds with their standard deviation."""
    if len(values) == 1:
        return form(values[0])
    return f"{form(statistics.fmean(values))} ± {form(statistics.stdev(values))}"


def groups(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Put the seeds of a cell together: name without the seed -> results.

    Seeds that read other texts stand apart, under the name and the texts' hash.
    """
    found: dict[str, list[Result]] = {}
    first: dict[str, str] = {}
    for result in results:
        name, read = result["cell"].rpartition("/")[0], _texts_hash(result.get("texts", {}))
        known = first.setdefault(name, read)
        found.setdefault(name if read == known else f"{name}, other texts ({read[:8]})", []).append(result)
    return found


def _texts_hash(texts: Result) -> str:
    """Name what a cell was trained and measured on; the text that is looked at once is another table's."""
    read = {role: value for role, value in texts.get("sha256", {}).items() if role != "fresh"}
    facts = json.dumps([read, texts.get("windows")], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


COLUMNS = (
    "cell",
    "seeds",
    "calibration tokens",
    "training tokens",
    "start KL",
    "held-out KL",
    "held-out CE",
    "top-1",
    "top-5",
    "bits per byte",
    "development KL",
    "development bits per byte",
    "effective rank",
    "cloze",
    "seconds",
)


def table(results: Sequence[Result], *, every_point: bool = False) -> str:
    """Return the Markdown table of the last points, or of all."""
    lines = [row(COLUMNS), row(["---"] * len(COLUMNS))]
    for name, seeds in groups(results).items():
        num_points = min(len(result["points"]) for result in seeds)
        for place in range(num_points) if every_point else [num_points - 1]:
            lines.append(row(_cells(name, [result["points"][place] for result in seeds], seeds)))
    return "\n".join(lines)


def _cells(name: str, points: list[Result], seeds: list[Result]) -> list[str]:
    def on(text: str, measure: str, form: Callable[[float], str]) -> str:
        return mean_text([point[text][measure] for point in points], form)

    def plain(value: float) -> str:
        return f"{value:.3f}"

    def percent(value: float) -> str:
        return f"{100 * value:.1f} %"

    ranks = [statistics.fmean(point["effective_rank"]) for point in points]
    cloze = [point["cloze"]["average"]["value"] for point in points if "cloze" in point]
    return [
        name,
        str(len(seeds)),
        f"{seeds[0]['calibration_tokens']:,}",
        f"{points[0]['tokens']:,}",
        mean_text([result["points"][0]["held_out"]["kl"] for result in seeds], plain),
        on("held_out", "kl", plain),
        on("held_out", "cross_entropy", plain),
        on("held_out", "top1_agreement", percent),
        on("held_out", "top5_agreement", percent),
        on("held_out", "bits_per_byte", plain),
        on("development", "kl", plain),
        on("development", "bits_per_byte", plain),
        mean_text(ranks, lambda value: f"{value:.1f}"),
        mean_text(cloze, percent) if len(cloze) == len(points) else "–",
        mean_text([point["seconds"] for point in points], lambda value: f"{value:,.0f}"),
    ]


def teacher_lines(results: Sequence[Result]) -> list[str]:
    """Return a line a teacher: what it scores on the same text."""
    lines: dict[str, str] = {}
    for result in results:
        held_out, development = (result["points"][0][text] for text in ("held_out", "development"))
        lines[result["teacher"]] = (
            f"Teacher {result['teacher']}: CE {held_out['teacher_cross_entropy']:.3f}, bits per byte "
            f"{held_out['teacher_bits_per_byte']:.3f} held out, {development['teacher_bits_per_byte']:.3f} development."
        )
    return list(lines.values())


def reach_table(results: Sequence[Result], level: float, *, text: str = "held_out") -> str:
    """Return the Markdown table of the training tokens that each cell takes to a KL."""
    lines = [row(["cell", f"tokens to {text.replace('_', '-')} KL {level:g}"]), row(["---", "---"])]
    for name, seeds in groups(results).items():
        needed = [tokens_to_reach(curve(result, text=text), level) for result in seeds]
        reached = [tokens for tokens in needed if tokens is not None]
        missed = len(needed) - len(reached)
        shown = mean_text(reached, lambda value: f"{value:,.0f}") if reached else "not reached"
        lines.append(row([name, shown if not missed or not reached else f"{shown} ({missed} not)"]))
    return "\n".join(lines)


def fresh_table(results: Sequence[Result]) -> str:
    """Return the Markdown table of the text that was measured once; seeds that had another one stand apart."""
    columns = ("cell", "text", "seeds", "fresh KL", "CE", "top-1", "bits per byte", "teacher's")
    measures = ("kl", "cross_entropy", "top1_agreement", "bits_per_byte", "teacher_bits_per_byte")
    lines = [row(columns), row(["---"] * len(columns))]
    for name, seeds in groups(results).items():
        by_text: dict[str, list[dict[str, float]]] = {}
        for result in seeds:
            by_text.setdefault(result["texts"]["sha256"]["fresh"][:8], []).append(result["points"][-1]["fresh"])
        for text, last in by_text.items():
            means = (mean_text([point[key] for point in last], lambda value: f"{value:.3f}") for key in measures)
            lines.append(row([name, text, str(len(last)), *means]))
    return "\n".join(lines)


def sweep_table(results: Sequence[Result]) -> str:
    """Return the Markdown table that a sweep is judged by: the development text alone."""
    columns = ("cell", "learning rate", "development KL at the start", "at the end", "top-1", "bits per byte")
    lines = [row(columns), row(["---"] * len(columns))]
    for result in results:
        first, last = result["points"][0]["development"], result["points"][-1]["development"]
        rate = f"{result['recipe']['train']['learning_rate']:g}"
        shown = (f"{first['kl']:.3f}", f"{last['kl']:.3f}", f"{100 * last['top1_agreement']:.1f} %")
        lines.append(row([result["cell"], rate, *shown, f"{last['bits_per_byte']:.3f}"]))
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
