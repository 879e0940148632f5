"""The heat map shows every clone term's own numbers, for whichever terms the run has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from lrc.report.clone_heat_map import MAX_COLUMNS, clone_terms, clone_unit, draw_clone_heat_map, largest_error_text
from lrc.report.figure_style import LIGHT, png_bytes
from lrc.report.read_run import read_run
from lrc.report.records import RunData
from tests.report.synthetic_run import ALL_TERMS, IO_TERMS, write_run


def panels_of(data: RunData) -> dict[str, Axes]:
    figure = draw_clone_heat_map(data, LIGHT)
    assert figure is not None
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible() and axes.get_title("left")}


def mesh_of(axes: Axes) -> tuple[Any, Any]:
    (mesh,) = [child for child in axes.get_children() if isinstance(child, QuadMesh)]
    return mesh.get_array(), mesh.get_coordinates()


@pytest.mark.parametrize("terms", [ALL_TERMS, IO_TERMS, ("mlp-out",)])
def test_each_term_has_a_panel_with_its_values(tmp_path: Path, terms: tuple[str, ...]) -> None:
    data = read_run(write_run(tmp_path, num_steps=6, log_steps=2, num_layers=4, terms=terms))
    panels = panels_of(data)
    assert tuple(panels) == terms
    for term in terms:
        values, borders = mesh_of(panels[term])
        expected = np.array([point.clone[term] for point in data.train]).T
        np.testing.assert_array_equal(values.reshape(4, 3), expected)
        np.testing.assert_array_equal(borders[0, :, 0], [0, *(point.tokens for point in data.train)])
        np.testing.assert_array_equal(borders[:, 0, 1], np.arange(5) - 0.5)


def test_one_logged_step_is_one_column(tmp_path: Path) -> None:
    data = read_run(write_run(tmp_path, num_steps=1, num_layers=2))
    values, borders = mesh_of(panels_of(data)["attn-q"])
    assert values.size == 2
    assert borders[0, :, 0].tolist() == [0, data.train[0].tokens]


def test_long_runs_show_evenly_spaced_steps(tmp_path: Path) -> None:
    data = read_run(write_run(tmp_path, num_steps=2 * MAX_COLUMNS, num_layers=1, terms=("attn-q",)))
    values, borders = mesh_of(panels_of(data)["attn-q"])
    assert values.size == MAX_COLUMNS
    assert borders[0, -1, 0] == data.train[-1].tokens


def test_gaps_and_zeros_draw_nothing(tmp_path: Path) -> None:
    data = read_run(write_run(tmp_path, num_steps=1, num_layers=3, terms=("attn-q", "new-term")))
    data.train[0].clone.update({"attn-q": (None, 0.0, 0.5), "new-term": (0.25,)})
    panels = panels_of(data)
    assert tuple(panels) == ("attn-q", "new-term")
    assert mesh_of(panels["attn-q"])[0].mask.ravel().tolist() == [True, True, False]


def test_run_without_clone_terms_has_no_heat_map(tmp_path: Path) -> None:
    data = read_run(write_run(tmp_path, num_steps=1, num_layers=2, terms=()))
    assert clone_terms(data.train) == []
    assert draw_clone_heat_map(data, LIGHT) is None


def test_equal_values_still_draw(tmp_path: Path) -> None:
    data = read_run(write_run(tmp_path, num_steps=1, num_layers=2, terms=("attn-q",)))
    data.train[0].clone["attn-q"] = (0.5, 0.5)
    figure = draw_clone_heat_map(data, LIGHT)
    assert figure is not None
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_unit_follows_the_recipe(tmp_path: Path) -> None:
    assert clone_unit(read_run(write_run(tmp_path, num_steps=1, num_layers=1))) == "relative squared error"


def test_the_largest_error_at_the_end_is_named_with_its_share(tmp_path: Path) -> None:
    data = read_run(write_run(tmp_path, num_steps=2, num_layers=3))
    last = replace(data.train[-1], clone={"attn-q": (1.0, None, 2.0), "mlp-out": (0.0, 6.0, 1.0)})
    text = largest_error_text(replace(data, train=(*data.train[:-1], last)))
    assert text.startswith("At the end the largest is mlp-out of layer 1, 60.0 % of the sum")
    nothing = replace(last, clone={})
    assert largest_error_text(replace(data, train=(nothing,))) == largest_error_text(replace(data, train=())) == ""
