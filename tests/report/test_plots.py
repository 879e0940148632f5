"""The figures hold the run's numbers, and come out as real PNG files for both modes."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from lrc.report.figure_style import DARK, LIGHT, Theme
from lrc.report.plots import (
    SMOOTHED_FROM_POINTS,
    draw_effective_rank,
    draw_held_out,
    draw_losses,
    draw_plots,
    draw_rank_history,
    draw_start_errors,
)
from lrc.report.read_run import read_run
from lrc.report.records import RunData
from tests.report.synthetic_run import write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return read_run(write_run(tmp_path_factory.mktemp("run"), num_steps=8, num_layers=4))


def line_heights(axes: Axes, place: int = 0) -> list[Any]:
    return list(np.asarray(axes.lines[place].get_ydata()))


def has_labels(axes: Axes) -> bool:
    return bool(axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left"))


def test_png_files_are_valid_and_show_something(data: RunData) -> None:
    plots = draw_plots(data)
    assert set(plots) == {"held_out", "losses", "clone_terms", "start_errors", "effective_rank", "rank_history"}
    for name, plot in plots.items():
        for png, theme in ((plot.light_png, LIGHT), (plot.dark_png, DARK)):
            check_png(png, theme, has_student_color=name != "clone_terms")


def check_png(png: bytes, theme: Theme, *, has_student_color: bool) -> None:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(io.BytesIO(png), format="png")[..., :3]
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1000
    np.testing.assert_allclose(pixels[0, 0], to_rgb(theme.background), atol=0.01)
    assert len(np.unique((255 * pixels[::2, ::2]).astype(int) @ [1 << 16, 1 << 8, 1])) > 50
    student_pixels = np.abs(pixels - np.array(to_rgb(theme.student))).max(axis=-1) < 0.01
    assert not has_student_color or student_pixels.sum() > 500


def test_held_out_curves_are_the_measures_with_the_start_marked(data: RunData) -> None:
    figure = draw_held_out(data, LIGHT)
    assert figure is not None
    kl, agreement = figure.axes
    assert line_heights(kl) == [point.kl for point in data.held_out]
    assert line_heights(agreement) == [100 * (point.top1_agreement or 0) for point in data.held_out]
    assert list(np.asarray(kl.lines[0].get_xdata())) == [point.tokens for point in data.held_out]
    assert line_heights(kl, 1) == [data.held_out[0].kl]
    assert kl.lines[1].get_marker() == "D"
    assert [text.get_text() for text in kl.texts] == ["step 0: 1.50", "1.07"]
    assert has_labels(kl)
    assert has_labels(agreement)


def test_held_out_without_a_start_marks_nothing(data: RunData) -> None:
    figure = draw_held_out(replace(data, held_out=data.held_out[1:]), LIGHT)
    assert figure is not None
    assert len(figure.axes[0].lines) == 1


def test_single_held_out_measure_is_drawn(data: RunData) -> None:
    figure = draw_held_out(replace(data, held_out=data.held_out[:1]), LIGHT)
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].texts] == ["step 0: 1.50"]


def test_loss_curves_are_the_logged_losses(data: RunData) -> None:
    figure = draw_losses(data, LIGHT)
    assert figure is not None
    lm, kl, clone = figure.axes
    assert line_heights(lm) == [point.lm_loss for point in data.train]
    assert line_heights(kl) == [point.kl_loss for point in data.train]
    assert line_heights(clone) == [point.clone_loss for point in data.train]
    assert kl.get_title(loc="left") == "KL loss at T = 1"
    assert all(has_labels(axes) for axes in figure.axes)


def test_null_loss_is_a_gap_and_wide_losses_get_a_log_axis(data: RunData) -> None:
    points = [replace(point, lm_loss=None, clone_loss=10.0**-place) for place, point in enumerate(data.train)]
    figure = draw_losses(replace(data, train=tuple(points)), LIGHT)
    assert figure is not None
    assert np.isnan(line_heights(figure.axes[0])).all()
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log"]


def test_long_loss_curves_get_a_running_mean(data: RunData) -> None:
    points = [replace(data.train[0], tokens=step, lm_loss=2.5) for step in range(SMOOTHED_FROM_POINTS)]
    figure = draw_losses(replace(data, train=tuple(points)), LIGHT)
    assert figure is not None
    np.testing.assert_allclose(line_heights(figure.axes[0], 1), 2.5)
    inner = np.asarray(figure.axes[0].lines[1].get_xdata())
    assert inner[0] - 0 == SMOOTHED_FROM_POINTS - 1 - inner[-1]


def test_start_bars_are_the_layer_errors_in_percent(data: RunData) -> None:
    assert data.start is not None
    errors = (0.5, None, 0.25)
    figure = draw_start_errors(replace(data, start=replace(data.start, layer_errors=errors)), LIGHT)
    assert figure is not None
    bars = [patch.get_height() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    np.testing.assert_array_equal(bars, [50.0, np.nan, 25.0])
    assert draw_start_errors(replace(data, start=replace(data.start, layer_errors=(None,))), LIGHT) is None


def test_effective_ranks_are_drawn_for_whoever_has_them(data: RunData) -> None:
    figure = draw_effective_rank(data, LIGHT)
    assert figure is not None
    assert data.results is not None
    assert data.start is not None
    assert line_heights(figure.axes[0]) == list(data.results.teacher_effective_rank or ())
    assert line_heights(figure.axes[0], 1) == list(data.results.student_effective_rank or ())
    assert line_heights(figure.axes[0], 2) == list(data.start.effective_rank or ())
    only_start = draw_effective_rank(replace(data, results=None), LIGHT)
    assert only_start is not None
    assert len(only_start.axes[0].lines) == 1
    assert draw_effective_rank(replace(data, results=None, start=None), LIGHT) is None


def test_the_rank_over_training_stands_beside_the_best_there_could_be(data: RunData) -> None:
    figure = draw_rank_history(data, LIGHT)
    assert figure is not None
    assert has_labels(figure.axes[0])
    best, mean, lowest = (line_heights(figure.axes[0], place) for place in range(3))
    ranks = [point.effective_rank or () for point in data.held_out]
    assert best == [pytest.approx(np.mean(data.held_out[-1].teacher_effective_rank or ()))] * 2
    assert mean == [pytest.approx(np.mean(row)) for row in ranks]
    assert lowest == [pytest.approx(min(value for value in row if value is not None)) for row in ranks]
    older = tuple(replace(point, effective_rank=None) for point in data.held_out)
    assert draw_rank_history(replace(data, held_out=older), LIGHT) is None
