"""The plot of the arena: a line a method, the start before the tokens, the spread of the seeds."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.arena.plot import draw, draw_plots
from tests.benchmarks.cell_results import made_up_result


def test_methods_are_lines_and_seeds_are_averaged(tmp_path: Path) -> None:
    seeds = [
        made_up_result(f"smollm2/half/red/250k/seed{seed}", [3.0, 2.0, 1.5, 1.2, last])
        for seed, last in enumerate((0.9, 1.1))
    ]
    results = [made_up_result("smollm2/half/default/250k/seed0", [1.5, 1.2, 1.0, 0.9, 0.8]), *seeds]
    axes = draw(results, text="held_out").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["default", "red"]
    default, red = axes.lines
    assert list(np.asarray(red.get_ydata())) == [3.0, 2.0, 1.5, 1.2, pytest.approx(1.0)]
    assert list(np.asarray(default.get_xdata())) == [500, 1_000, 2_000, 4_000, 8_000]
    assert len(axes.collections) == 1  # the spread of the two seeds
    assert axes.get_xticklabels()[0].get_text() == "start"
    third = made_up_result("smollm2/third/red/250k/seed0", [3.0, 2.0, 1.5, 1.2, 1.0])
    files = draw_plots([*results, third], tmp_path, text="development")
    assert [path.name for path in files] == ["smollm2-half-development.png", "smollm2-third-development.png"]
