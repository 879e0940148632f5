"""The report as one HTML page that needs no other file: `RunData` and its plots in, text out."""

import base64
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lrc.report.clone_heat_map import largest_error_text
from lrc.report.facts_page import fine_tuned_rows
from lrc.report.model_card import Origin, other_scored_text, training_word
from lrc.report.number_text import MISSING, duration_text, significant
from lrc.report.plots import Plot
from lrc.report.read_run import METRICS_FILE, PARITY_FILE, RECIPE_FILE, RESULTS_FILE, START_FILE
from lrc.report.records import Parity, ParityDifference, Results, RunData, Sample
from lrc.report.scorecard import (
    Value,
    collapse_text,
    headline_tiles,
    scorecard_rows,
    short_name,
    summary_text,
    title_text,
)
from lrc.report.task_records import TABLE_HEADER, task_rows, truncation_text
from lrc.sft_config import SFT_FACTS

TEMPLATE = "page.html.j2"
HEADINGS = {
    "fine_tuning": "Fine-tuning",
    "scorecard": "Scorecard",
    "tasks": "Benchmarks",
    "samples": "Sample continuations",
    "held_out": "Held-out text over training",
    "losses": "Training losses",
    "clone_terms": "Clone errors by layer",
    "start_errors": "The start, layer by layer",
    "effective_rank": "Effective rank",
    "rank_history": "Effective rank over training",
    "parity": "Parity",
    "recipe": "Recipe",
    "versions": "Versions",
}
"""The sections in the order of the page."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading of the page, and why nothing stands below it, if so."""

    heading: str
    anchor: str
    left_out: str
    """Empty if the section is shown."""


def page_html(data: RunData, plots: dict[str, Plot], origin: Origin) -> str:
    """Return the report page.

    Args:
        data: What the run left.
        plots: The figures of `draw_plots`, embedded as base64 PNG for light and dark pages.
        origin: What was done to the student after training, and whether the scores are its own.
    """
    environment = Environment(
        loader=PackageLoader("lrc.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(_page_values(data, plots, origin))


def _page_values(data: RunData, plots: dict[str, Plot], origin: Origin) -> dict[str, Any]:
    # what the scorecard says of the model that it scored is true of no other
    known = data if origin.scored_other is None else replace(data, results=None)
    return {
        "title": title_text(known),
        "summary": _summary(known, origin),
        "warnings": _warnings(data, origin),
        "scored": _scored_name(data),
        "fine_tuned": _fine_tuned(data),
        "training_word": training_word(data),
        "largest_clone_error": largest_error_text(data),
        "run_name": data.run.resolve().name,
        "tiles": headline_tiles(known),
        "sections": _sections(data, plots),
        "results": data.results,
        "scorecard": scorecard_rows(data),
        "tasks": data.tasks,
        "task_header": TABLE_HEADER,
        "task_rows": task_rows(data.tasks) if data.tasks else [],
        "truncation": truncation_text(data.tasks) if data.tasks else "",
        "held_out_source": short_name(data.results.source) if data.results else "",
        "machine": _machine_text(data.results) if data.results else "",
        "samples": _samples(data.results) if data.results else [],
        "held_out_positions": data.held_out[-1].positions if data.held_out else 0,
        "has_start_point": bool(data.held_out) and data.held_out[0].step == 0,
        "plots": {name: _data_urls(plots[name]) if name in plots else None for name in HEADINGS},
        "start": data.start,
        "start_duration": duration_text(data.start.seconds) if data.start and data.start.seconds is not None else "",
        "parity": None if data.parity is None else _parity_values(data.parity),
        "recipe_text": data.recipe_text,
        "versions": _version_rows(data),
    }


def _summary(known: RunData, origin: Origin) -> str:
    after = f"After {training_word(known)}: {origin.after_training}." if origin.after_training else ""
    return f"{summary_text(known)} {_plain(after)}".strip()


def _warnings(data: RunData, origin: Origin) -> list[str]:
    other = "" if origin.scored_other is None else other_scored_text(short_name(origin.scored_other))
    return [text for text in (other, collapse_text(data)) if text]


def _scored_name(data: RunData) -> str:
    """Return the last part of the scored model's folder, as the card does: a page may leave this machine."""
    name = data.results.student.name if data.results else data.tasks.student if data.tasks else ""
    return short_name(name) if name else ""


def _fine_tuned(data: RunData) -> list[tuple[str, str]]:
    rows = [] if data.fine_tuned is None else fine_tuned_rows(data.fine_tuned)
    return [(label, _plain(value)) for label, value in rows]


def _plain(markdown: str) -> str:
    """Return a fact without the marks of Markdown code, which holds none itself."""
    return markdown.replace("`", "")


def _sections(data: RunData, plots: dict[str, Plot]) -> dict[str, Section]:
    results, start = data.results, data.start
    no_results = "" if results else _missing(RESULTS_FILE, "lrc evaluate")
    no_samples = "" if results and results.samples else no_results or "Left out: no prompts were continued."
    no_steps = "" if data.train else f"Left out: there is no training step in {METRICS_FILE}; lrc train writes them."
    no_errors = "Left out: the start measured no layer errors." if start else _missing(START_FILE, "lrc train")
    reasons = {
        "held_out": f"Left out: there is no held-out measure in {METRICS_FILE}; lrc train writes them.",
        "losses": no_steps,
        "clone_terms": no_steps or "Left out: the run logged no clone terms.",
        "start_errors": no_errors,
        "effective_rank": no_results or "Left out: no effective rank was measured.",
        "rank_history": f"Left out: no held-out measure in {METRICS_FILE} has an effective rank.",
    }
    left_out = {
        "fine_tuning": "" if data.fine_tuned else f"Left out: the student has no {SFT_FACTS}; lrc sft writes one.",
        "scorecard": no_results,
        "tasks": "" if data.tasks else f"Left out: {RESULTS_FILE} has no tasks; lrc evaluate --tasks writes them.",
        "samples": no_samples,
        **{name: "" if name in plots else reason for name, reason in reasons.items()},
        "parity": "" if data.parity else _missing(PARITY_FILE, "lrc convert"),
        "recipe": _missing(RECIPE_FILE, "lrc train") if data.recipe_text is None else "",
        "versions": "" if _version_rows(data) else "Left out: no file names its versions.",
    }
    return {
        name: Section(heading=heading, anchor=name.replace("_", "-"), left_out=left_out[name])
        for name, heading in HEADINGS.items()
    }


def _missing(file: str, verb: str) -> str:
    return f"Left out: {file} is not there; {verb} writes it."


def _data_urls(plot: Plot) -> dict[str, str]:
    return {"light": _data_url(plot.light_png), "dark": _data_url(plot.dark_png)}


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _machine_text(results: Results) -> str:
    threads = "" if results.threads is None else f" with {results.threads} thread{'s' if results.threads != 1 else ''}"
    return f"{results.device}{threads} in {results.dtype}"


def _samples(results: Results) -> list[Sample]:
    """Return the samples without the one space that joins a continuation to its prompt."""
    return [
        replace(
            sample,
            teacher=None if sample.teacher is None else sample.teacher.removeprefix(" "),
            student=sample.student.removeprefix(" "),
        )
        for sample in results.samples
    ]


def _parity_values(parity: Parity) -> dict[str, Any]:
    checks: list[tuple[str, ParityDifference]] = [
        ("In memory, after the merge", parity.in_memory),
        ("Read back from the exported folder", parity.after_reload),
    ]
    return {
        "passed": parity.passed,
        "positions": parity.positions,
        "dtype": parity.dtype,
        "tolerance": _value(parity.tolerance),
        "logit_scale": _value(parity.logit_scale),
        "rows": [
            {
                "label": label,
                "largest": _value(difference.max_abs_difference),
                "relative": _value(difference.relative_difference),
            }
            for label, difference in checks
        ],
    }


def _value(number: float | None) -> Value:
    return Value(exact=number, text=significant(number, 3))


def _version_rows(data: RunData) -> list[dict[str, str]]:
    trained = data.start.versions if data.start else {}
    scored = data.results.versions if data.results else {}
    libraries = sorted(trained.keys() | scored.keys(), key=str.lower)
    return [
        {"library": name, "trained": trained.get(name, MISSING), "scored": scored.get(name, MISSING)}
        for name in libraries
    ]
