"""The heat map of the clone terms: one panel a term, layers upwards, training tokens to the right."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lrc.report.figure_style import Theme, label_axes, new_figure, style_axes, use_token_ticks
from lrc.report.number_text import percent
from lrc.report.records import PerLayer, RunData, TrainPoint

TERM_ORDER = (
    "attn-in",
    "attn-q",
    "attn-k",
    "attn-v",
    "attn-out",
    "mlp-in",
    "mlp-gate",
    "mlp-up",
    "mlp-out",
)
"""The order of a layer's own computation; terms not listed follow by name."""
MAX_COLUMNS = 160
"""Logged steps shown; of more, evenly spaced ones are."""
PANELS_PER_ROW = 4
COLOR_MAP = "viridis"

Floats = npt.NDArray[np.float64]


def draw_clone_heat_map(data: RunData, theme: Theme) -> Figure | None:
    """Draw each clone term by layer and training tokens, on one logarithmic colour scale."""
    points = [point for point in _spread(data.train) if point.clone]
    terms = clone_terms(points)
    grids = {term: _term_grid(points, term) for term in terms}
    positive = np.concatenate([grid[grid > 0] for grid in grids.values()]) if grids else np.empty(0)
    if not positive.size:
        return None
    norm = LogNorm(vmin=positive.min() * 0.999, vmax=positive.max() * 1.001)
    num_rows = math.ceil(len(terms) / PANELS_PER_ROW)
    num_columns = min(len(terms), PANELS_PER_ROW)
    figure = new_figure(theme, height_inches=0.9 + 2.15 * num_rows)
    panels: list[Axes] = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    edges = _column_edges([point.tokens for point in points])
    for index, (axes, term) in enumerate(zip(panels, terms, strict=False)):
        _draw_panel(axes, theme, edges, grids[term], norm)
        is_lowest = index + num_columns >= len(terms)
        is_leftmost = index % num_columns == 0
        axes.tick_params(labelleft=is_leftmost, labelbottom=is_lowest)
        x, y = "training tokens" if is_lowest else "", "layer" if is_leftmost else ""
        label_axes(axes, theme, x=x, y=y, title=term)
    for axes in panels[len(terms) :]:
        axes.set_visible(False)
    _add_color_bar(figure, theme, panels, norm, label=f"{clone_unit(data)} (log scale)")
    return figure


def _add_color_bar(figure: Figure, theme: Theme, panels: Sequence[Axes], norm: LogNorm, *, label: str) -> None:
    scale = ScalarMappable(norm=norm, cmap=COLOR_MAP)
    bar = figure.colorbar(
        scale, ax=panels, fraction=0.03, pad=0.015, format=FuncFormatter(lambda value, _: f"{value:g}")
    )
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    is_narrow = norm.vmax is not None and norm.vmin is not None and norm.vmax < 1000 * norm.vmin
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_narrow else (1.0,)))
    bar.ax.tick_params(which="both", colors=theme.muted, labelsize=9)
    bar.outline.set_visible(False)
    bar.set_label(label, color=theme.muted, fontsize=9.5)


def clone_unit(data: RunData) -> str:
    """Return what a clone error is measured in under the run's recipe."""
    if data.recipe is None:
        return "squared error"
    if data.recipe.objective.clone_error == "relative":
        return "relative squared error"
    return "mean squared error"


def clone_terms(points: Sequence[TrainPoint]) -> list[str]:
    """Return the names of all clone terms logged, in the order of a layer's computation."""
    known = {term: place for place, term in enumerate(TERM_ORDER)}
    logged = {term for point in points for term in point.clone}
    return sorted(logged, key=lambda term: (known.get(term, len(known)), term))


def largest_error_text(data: RunData) -> str:
    """Say which clone term of which layer is the largest at the end, and its share of the sum of all."""
    last = data.train[-1].clone if data.train else {}
    errors = {(term, layer): value for term, row in last.items() for layer, value in enumerate(row) if value}
    total = sum(errors.values())
    if not total > 0:
        return ""
    term, layer = max(errors, key=lambda place: errors[place])
    share = errors[term, layer] / total
    return f"At the end the largest is {term} of layer {layer}, {percent(share)} of the sum over all terms and layers."


def _spread(points: Sequence[TrainPoint]) -> list[TrainPoint]:
    if len(points) <= MAX_COLUMNS:
        return list(points)
    places = np.linspace(0, len(points) - 1, MAX_COLUMNS).round().astype(int)
    return [points[place] for place in places]


def _term_grid(points: Sequence[TrainPoint], term: str) -> Floats:
    """Return one term as [layer, logged step], NaN where it was not measured."""
    columns: list[PerLayer] = [point.clone.get(term, ()) for point in points]
    grid = np.full((max(len(column) for column in columns), len(columns)), np.nan)
    for place, column in enumerate(columns):
        grid[: len(column), place] = [np.nan if value is None else value for value in column]
    return grid


def _column_edges(tokens: Sequence[int]) -> Floats:
    """Return the borders of the columns: each reaches from the logged step before to its own."""
    first_border = 0.0
    if tokens[0] == 0:
        first_border = -float(tokens[1] - tokens[0]) if len(tokens) > 1 else -1.0
    return np.maximum.accumulate(np.array([first_border, *tokens], dtype=np.float64))


def _draw_panel(axes: Axes, theme: Theme, edges: Floats, grid: Floats, norm: LogNorm) -> None:
    style_axes(axes, theme, grid="none")
    layer_edges = np.arange(grid.shape[0] + 1) - 0.5
    shown = np.ma.masked_where(~(grid > 0), grid)
    axes.pcolormesh(edges, layer_edges, shown, norm=norm, cmap=COLOR_MAP, rasterized=True)
    axes.set_facecolor(theme.grid)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    use_token_ticks(axes, num_ticks=3)
