"""The plot of the arena: training tokens -> held-out KL, a line a method, one picture for each teacher and width."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .results import Result, curve, groups

COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#737373")
MARKERS = "osD^vPX*<>h"


def draw_plots(results: Sequence[Result], folder: Path, *, text: str = "held_out") -> list[Path]:
    """Draw and write `TEACHER-WIDTH-TEXT.png` of every teacher and width; returns the files."""
    sides: dict[str, list[Result]] = {}
    for result in results:
        sides.setdefault(f"{result['teacher']}-{result['width']}", []).append(result)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for side, own in sides.items():
        path = folder / f"{side}-{text.replace('_', '-')}.png"
        draw(own, text=text).savefig(path, dpi=150)
        written.append(path)
    return written


def draw(results: Sequence[Result], *, text: str) -> Figure:
    """Draw the curves of one teacher and width; seeds are averaged, and their spread is shaded."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    methods = list(dict.fromkeys(result["method"] for result in results))
    first_tokens = min(tokens for result in results for tokens, _ in curve(result, text=text) if tokens > 0)
    start = first_tokens / 2  # zero has no place on a logarithmic axis
    seen: set[str] = set()
    for _, seeds in groups(results).items():
        method = seeds[0]["method"]
        place = methods.index(method)
        lines = np.array([[value for _, value in curve(result, text=text)] for result in seeds])
        tokens = [count or start for count, _ in curve(seeds[0], text=text)]
        color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
        label = None if method in seen else method
        seen.add(method)
        axes.plot(tokens, lines.mean(0), color=color, marker=marker, markersize=5, linewidth=1.8, label=label)
        if len(seeds) > 1:
            spread = lines.std(0, ddof=1)
            axes.fill_between(
                tokens, lines.mean(0) - spread, lines.mean(0) + spread, color=color, alpha=0.2, linewidth=0
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = [value for result in results for _, value in curve(result, text=text)]
    low, high = min(values), max(values)
    ticks = [
        tick
        for tick in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12)
        if low * 0.8 <= tick <= high * 1.2
    ]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    counts = sorted({tokens for result in results for tokens, _ in curve(result, text=text) if tokens > 0})
    apart = [count for place, count in enumerate(counts) if not place or math.log(count / counts[place - 1]) > 0.3]
    axes.set_xticks([start, *apart], ["start", *(_short(count) for count in apart)])
    side = f"{results[0]['teacher']}, {results[0]['hidden_size']['teacher']} -> {results[0]['hidden_size']['student']}"
    axes.set_title(f"{side}: KL to the teacher on the {text.replace('_', '-')} text", loc="left", fontsize=11)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("nats per token")
    axes.grid(True, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _short(tokens: float) -> str:
    return f"{tokens / 1e6:.2g} M" if tokens >= 1e6 else f"{tokens / 1e3:.3g} k"
