"""How every figure of the report looks: colours, axes, token ticks and PNG bytes.

Figures are made without pyplot, so that drawing leaves no global state behind.
"""

import io
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from lrc.report.number_text import count_text

DOTS_PER_INCH = 144
FIGURE_WIDTH_INCHES = 9.6


@dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of one mode; teacher and student hues are from Okabe and Ito's colour-blind-safe set."""

    background: str
    """Behind the plot; equal to the page's panels."""
    ink: str
    """Titles and labels."""
    muted: str
    """Ticks."""
    grid: str
    """Grid lines and frames."""
    teacher: str
    """Everything measured on the teacher."""
    student: str
    """Everything measured on the student."""


LIGHT = Theme(
    background="#ffffff", ink="#20262d", muted="#5b6570", grid="#e3e5e8", teacher="#0072b2", student="#d55e00"
)
DARK = Theme(background="#1d2127", ink="#e6e8ea", muted="#a3adb7", grid="#363c44", teacher="#56b4e9", student="#e69f00")


def new_figure(theme: Theme, *, height_inches: float) -> Figure:
    """Return an empty figure of the report's width."""
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.07)
    size = (FIGURE_WIDTH_INCHES, height_inches)
    return Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor=theme.background, layout=layout)


def style_axes(axes: Axes, theme: Theme, *, grid: Literal["both", "y", "none"] = "y") -> None:
    """Give axes the report's quiet frame, ticks and grid."""
    axes.set_facecolor(theme.background)
    axes.tick_params(colors=theme.muted, labelsize=9, length=3)
    for side, spine in axes.spines.items():
        spine.set_color(theme.grid)
        spine.set_visible(side in ("left", "bottom"))
    if grid != "none":
        axes.grid(axis=grid, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def label_axes(axes: Axes, theme: Theme, *, x: str = "", y: str = "", title: str = "") -> None:
    """Write the title and the axis labels, units included."""
    axes.set_xlabel(x, color=theme.muted, fontsize=9.5)
    axes.set_ylabel(y, color=theme.muted, fontsize=9.5)
    axes.set_title(title, color=theme.ink, fontsize=11, loc="left", pad=8)


def use_token_ticks(axes: Axes, *, num_ticks: int = 5) -> None:
    """Write the x axis as 20 k, 1 M, 10 B tokens."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=num_ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: count_text(tokens, digits=3)))


def add_legend(axes: Axes, theme: Theme) -> None:
    """Add a legend without a frame."""
    axes.legend(frameon=False, fontsize=9.5, labelcolor=theme.ink)


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG file that holds no version stamp, so equal figures give equal bytes.

    Its colours, a thousand or so, are brought to 256: less than half the bytes, on a page that holds each figure twice.
    """
    drawn, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(written, format="PNG", optimize=True)
    return written.getvalue()
