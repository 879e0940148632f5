"""Every figure looks the same: colours that can be read, a quiet frame, token ticks, and bytes that repeat."""

import io
import re
from importlib.resources import files

import matplotlib as mpl
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from lrc.report.figure_style import (
    DARK,
    DOTS_PER_INCH,
    FIGURE_WIDTH_INCHES,
    LIGHT,
    Theme,
    add_legend,
    label_axes,
    new_figure,
    png_bytes,
    style_axes,
    use_token_ticks,
)

OKABE_ITO = {"#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#000000"}

each_theme = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def styled(theme: Theme, grid: str = "y") -> tuple[Figure, Axes]:
    figure = new_figure(theme, height_inches=2.0)
    axes = figure.subplots()
    axes.plot([0, 100_000], [1.0, 2.0], color=theme.student, label="student")
    style_axes(axes, theme, grid=grid)  # type: ignore[arg-type]
    return figure, axes


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@each_theme
def test_text_and_curves_stand_out_from_the_background(theme: Theme) -> None:
    for text in (theme.ink, theme.muted):
        assert contrast(text, theme.background) >= 4.5  # WCAG AA, text
    for curve in (theme.teacher, theme.student):
        assert contrast(curve, theme.background) >= 3  # WCAG AA, graphics
    assert 1 < contrast(theme.grid, theme.background) < contrast(theme.muted, theme.background)


@each_theme
def test_teacher_and_student_can_be_told_apart_without_colour_vision(theme: Theme) -> None:
    assert {theme.teacher, theme.student} <= OKABE_ITO
    assert theme.teacher != theme.student


def test_the_backgrounds_are_those_of_the_pages_panels() -> None:
    (style,) = (entry for entry in files("lrc.report").iterdir() if entry.name.endswith(".css"))
    panels = re.findall(r"--panel:\s*(#\w+)", style.read_text(encoding="utf-8"))
    assert panels == [LIGHT.background, DARK.background]


@each_theme
def test_the_frame_is_quiet(theme: Theme) -> None:
    figure, axes = styled(theme)
    assert to_hex(figure.get_facecolor()) == to_hex(axes.get_facecolor()) == theme.background
    assert {side for side, spine in axes.spines.items() if spine.get_visible()} == {"left", "bottom"}
    assert {to_hex(spine.get_edgecolor()) for spine in axes.spines.values()} == {theme.grid}
    assert {label.get_color() for label in axes.get_xticklabels() + axes.get_yticklabels()} == {theme.muted}
    assert axes.get_axisbelow() is True


@pytest.mark.parametrize(("grid", "across", "up"), [("y", True, False), ("both", True, True), ("none", False, False)])
def test_grid_lines_are_drawn_where_asked(grid: str, across: bool, up: bool) -> None:
    _, axes = styled(LIGHT, grid)
    for lines, shown in ((axes.get_ygridlines(), across), (axes.get_xgridlines(), up)):
        assert {line.get_visible() for line in lines} == {shown}
        assert not shown or {line.get_color() for line in lines} == {LIGHT.grid}


@each_theme
def test_titles_and_labels_are_written_in_the_themes_ink(theme: Theme) -> None:
    _, axes = styled(theme)
    label_axes(axes, theme, x="tokens", y="KL, nats", title="held out")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens", "KL, nats")
    assert axes.get_title(loc="left") == "held out"
    assert axes.get_title(loc="center") == ""
    assert axes.xaxis.label.get_color() == axes.yaxis.label.get_color() == theme.muted


@pytest.mark.parametrize(
    ("tokens", "texts"),
    [(80_000, ["0", "20 k", "40 k", "60 k", "80 k"]), (10_000_000_000, ["0", "2 B", "4 B", "6 B", "8 B", "10 B"])],
)
def test_token_ticks_are_written_as_people_read_them(tokens: int, texts: list[str]) -> None:
    figure = new_figure(LIGHT, height_inches=2.0)
    axes = figure.subplots()
    axes.set_xlim(0, tokens)
    use_token_ticks(axes)
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()] == texts


def test_fewer_token_ticks_can_be_asked_for() -> None:
    figure = new_figure(LIGHT, height_inches=2.0)
    axes = figure.subplots()
    axes.set_xlim(0, 80_000)
    use_token_ticks(axes, num_ticks=2)
    assert [tick for tick in axes.get_xticks() if 0 <= tick <= 80_000] == [0, 40_000, 80_000]


@each_theme
def test_a_legend_has_no_frame(theme: Theme) -> None:
    _, axes = styled(theme)
    add_legend(axes, theme)
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_frame_on() is False
    assert [(text.get_text(), to_hex(text.get_color())) for text in legend.get_texts()] == [("student", theme.ink)]


@pytest.mark.parametrize("height_inches", [2.0, 3.5])
def test_a_png_has_the_reports_width_and_the_figures_height(height_inches: float) -> None:
    figure = new_figure(DARK, height_inches=height_inches)
    pixels = imread(io.BytesIO(png_bytes(figure)), format="png")
    assert pixels.shape[:2] == (height_inches * DOTS_PER_INCH, int(FIGURE_WIDTH_INCHES * DOTS_PER_INCH))


def test_equal_figures_give_equal_bytes_without_a_version_stamp() -> None:
    first, second = png_bytes(styled(LIGHT)[0]), png_bytes(styled(LIGHT)[0])
    assert first == second
    assert b"Software" not in first
    assert b"atplotlib" not in first
    assert png_bytes(styled(DARK)[0]) != first


def test_drawing_leaves_no_global_state_behind() -> None:
    settings, numbers = mpl.rcParams.copy(), pyplot.get_fignums()
    figure, axes = styled(LIGHT)
    label_axes(axes, LIGHT, x="x", y="y", title="title")
    use_token_ticks(axes)
    png_bytes(figure)
    assert pyplot.get_fignums() == numbers
    assert mpl.rcParams == settings
