"""The figures of the report, each drawn from a `RunData` once for light and once for dark pages.

A figure whose numbers the run does not have is left out. `draw_plots` returns the PNG bytes; it writes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lrc.report.clone_heat_map import clone_unit, draw_clone_heat_map
from lrc.report.figure_style import (
    DARK,
    LIGHT,
    Theme,
    add_legend,
    label_axes,
    new_figure,
    png_bytes,
    style_axes,
    use_token_ticks,
)
from lrc.report.number_text import percent, significant
from lrc.report.records import HeldOut, RunData

SMOOTHED_FROM_POINTS = 40
"""Loss curves with at least so many points get a running mean on top."""
LOG_SCALE_FROM_RATIO = 30.0
"""A loss that falls by at least this factor is drawn on a logarithmic axis."""
MAX_LAYERS_WITH_MARKERS = 48

Floats = npt.NDArray[np.float64]
Draw = Callable[[RunData, Theme], Figure | None]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure as two PNG files."""

    light_png: bytes
    """For light pages and for the report folder."""
    dark_png: bytes
    """For dark pages."""


def draw_plots(data: RunData) -> dict[str, Plot]:
    """Draw every figure that the run has numbers for, by name (`NAME.png` in the report folder)."""
    drawings: dict[str, Draw] = {
        "held_out": draw_held_out,
        "losses": draw_losses,
        "clone_terms": draw_clone_heat_map,
        "start_errors": draw_start_errors,
        "effective_rank": draw_effective_rank,
        "rank_history": draw_rank_history,
    }
    plots = {}
    for name, draw in drawings.items():
        light, dark = draw(data, LIGHT), draw(data, DARK)
        if light is not None and dark is not None:
            plots[name] = Plot(light_png=png_bytes(light), dark_png=png_bytes(dark))
    return plots


def draw_held_out(data: RunData, theme: Theme) -> Figure | None:
    """Draw held-out KL and top-1 agreement over training tokens, the start marked."""
    if not data.held_out:
        return None
    figure = new_figure(theme, height_inches=3.7)
    left, right = figure.subplots(1, 2)
    kl = [point.kl for point in data.held_out]
    agreement = [None if point.top1_agreement is None else 100 * point.top1_agreement for point in data.held_out]
    _draw_held_out_curve(left, theme, data.held_out, kl, [significant(value, 3) for value in kl])
    label_axes(left, theme, x="training tokens", y="nats per token", title="KL to the teacher (lower is better)")
    agreement_text = [percent(point.top1_agreement) for point in data.held_out]
    _draw_held_out_curve(right, theme, data.held_out, agreement, agreement_text)
    label_axes(right, theme, x="training tokens", y="% of positions", title="Top-1 agreement (higher is better)")
    return figure


def _draw_held_out_curve(
    axes: Axes, theme: Theme, points: Sequence[HeldOut], values: Sequence[float | None], texts: Sequence[str]
) -> None:
    style_axes(axes, theme)
    tokens = [point.tokens for point in points]
    heights = _with_gaps(values)
    axes.plot(tokens, heights, color=theme.student, linewidth=2, marker="o", markersize=4.5)
    axes.margins(x=0.06, y=0.22)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    use_token_ticks(axes)
    if len(points) == 1:
        axes.set_xticks(tokens)
    if points[0].step == 0 and np.isfinite(heights[0]):
        axes.plot(
            tokens[:1],
            heights[:1],
            linestyle="none",
            marker="D",
            markersize=9,
            markerfacecolor=theme.background,
            markeredgecolor=theme.student,
            markeredgewidth=2,
            clip_on=False,
            zorder=3,
        )
        _annotate(axes, theme, f"step 0: {texts[0]}", at=(tokens[0], heights[0]), offset=(11, -1), align="left")
    if len(points) > 1 and np.isfinite(heights[-1]):
        falls = np.isfinite(heights[0]) and heights[-1] < heights[0]
        offset = (4, -19) if falls else (4, 10)
        _annotate(axes, theme, texts[-1], at=(tokens[-1], heights[-1]), offset=offset, align="right")


def _annotate(
    axes: Axes, theme: Theme, text: str, *, at: tuple[float, float], offset: tuple[int, int], align: str
) -> None:
    axes.annotate(
        text, at, xytext=offset, textcoords="offset points", color=theme.ink, fontsize=9.5, horizontalalignment=align
    )


def draw_losses(data: RunData, theme: Theme) -> Figure | None:
    """Draw the LM, KL and clone losses of the training batches over training tokens."""
    if not data.train:
        return None
    tokens = np.array([point.tokens for point in data.train], dtype=np.float64)
    at_temperature = f" at T = {data.recipe.objective.temperature:g}" if data.recipe else ""
    panels: list[tuple[str, str, list[float | None]]] = [
        ("LM loss", "nats per position", [point.lm_loss for point in data.train]),
        (f"KL loss{at_temperature}", "nats per position", [point.kl_loss for point in data.train]),
        ("Clone loss, before its weight", clone_unit(data), [point.clone_loss for point in data.train]),
    ]
    figure = new_figure(theme, height_inches=3.3)
    for axes, (title, unit, values) in zip(figure.subplots(1, 3), panels, strict=True):
        style_axes(axes, theme)
        _draw_loss_curve(axes, theme, tokens, _with_gaps(values))
        label_axes(axes, theme, x="training tokens", y=unit, title=title)
        use_token_ticks(axes, num_ticks=4)
        axes.set_xlim(left=0)
    return figure


def _draw_loss_curve(axes: Axes, theme: Theme, tokens: Floats, losses: Floats) -> None:
    finite = losses[np.isfinite(losses)]
    if finite.size and finite.min() > 0 and finite.max() / finite.min() >= LOG_SCALE_FROM_RATIO:
        axes.set_yscale("log")
    if losses.size < SMOOTHED_FROM_POINTS:
        axes.plot(tokens, losses, color=theme.student, linewidth=1.8, marker="o", markersize=3)
        return
    axes.plot(tokens, losses, color=theme.student, linewidth=0.8, alpha=0.35)
    window = max(5, losses.size // 40)
    mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    first = (window - 1) // 2
    axes.plot(tokens[first : first + mean.size], mean, color=theme.student, linewidth=2)


def draw_start_errors(data: RunData, theme: Theme) -> Figure | None:
    """Draw how far the student's stream is from the projected teacher's after each layer, before training."""
    if data.start is None or not any(error is not None for error in data.start.layer_errors):
        return None
    errors = 100 * _with_gaps(data.start.layer_errors)
    figure = new_figure(theme, height_inches=2.9)
    axes = figure.subplots()
    style_axes(axes, theme)
    axes.bar(np.arange(errors.size), errors, color=theme.student, width=0.72)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    title = f"Error of the student's residual stream at the start ({data.start.method})"
    label_axes(axes, theme, x="layer (0 is the first)", y="relative error, %", title=title)
    return figure


def draw_effective_rank(data: RunData, theme: Theme) -> Figure | None:
    """Draw the effective rank of the residual stream per layer: teacher, student, and student at the start."""
    results, start = data.results, data.start
    curves = [
        ("teacher", results.teacher_effective_rank if results else None, theme.teacher, "-"),
        ("student", results.student_effective_rank if results else None, theme.student, "-"),
        ("student before training", start.effective_rank if start else None, theme.student, ":"),
    ]
    if not any(ranks for _, ranks, _, _ in curves):
        return None
    figure = new_figure(theme, height_inches=3.5)
    axes = figure.subplots()
    style_axes(axes, theme)
    for label, ranks, color, line in curves:
        if ranks:
            heights = _with_gaps(ranks)
            marker = "o" if line == "-" and heights.size <= MAX_LAYERS_WITH_MARKERS else ""
            axes.plot(heights, color=color, linestyle=line, linewidth=2, marker=marker, markersize=4, label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    add_legend(axes, theme)
    title = "Effective rank of the residual stream"
    label_axes(axes, theme, x="layer (0 is the first)", y="dimensions", title=title)
    return figure


def draw_rank_history(data: RunData, theme: Theme) -> Figure | None:
    """Draw the effective rank over training, mean over the layers and lowest layer, beside the best there could be."""
    points = [point for point in data.held_out if point.effective_rank]
    if not points:
        return None
    tokens = [point.tokens for point in points]
    figure = new_figure(theme, height_inches=3.3)
    axes = figure.subplots()
    style_axes(axes, theme)
    ranks = [_with_gaps(point.effective_rank or ()) for point in points]
    best = _with_gaps(points[-1].teacher_effective_rank or ())
    if best.size:
        axes.axhline(float(np.nanmean(best)), color=theme.teacher, linewidth=2, label="teacher, at the student's width")
    means, lowest = [float(np.nanmean(row)) for row in ranks], [float(np.nanmin(row)) for row in ranks]
    axes.plot(tokens, means, color=theme.student, linewidth=2, marker="o", markersize=4.5, label="student")
    axes.plot(tokens, lowest, color=theme.student, linewidth=1.2, linestyle=":", label="its lowest layer")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.03)
    use_token_ticks(axes)
    add_legend(axes, theme)
    title = "Effective rank of the residual stream, mean over the layers"
    label_axes(axes, theme, x="training tokens", y="dimensions", title=title)
    return figure


def _with_gaps(values: Sequence[float | None]) -> Floats:
    """Return the values as an array in which None is a gap in the line."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
