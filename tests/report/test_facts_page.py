"""The facts page names teacher, student, tokens, recipe and scores, and stays sound Markdown."""

from dataclasses import replace

import pytest

from lrc.report.facts_page import facts_markdown
from lrc.report.plots import Plot
from lrc.report.read_run import read_run
from lrc.report.records import RunData
from tests.report.synthetic_run import write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return read_run(write_run(tmp_path_factory.mktemp("run"), num_steps=4, num_layers=2))


def test_facts_of_a_whole_run(data: RunData) -> None:
    plots = {"losses": Plot(light_png=b"", dark_png=b"")}
    lines = facts_markdown(data, plots).splitlines()
    assert lines[0] == "# smollm2-135m-instruct, cloned from width 576 to 288"
    for line in (
        "| Teacher | `smollm2-135m-instruct` |",
        "| Student | 67.27 M parameters |",
        "| Hidden size | 576 -> 288 |",
        "| Training tokens | 8,192 |",
        "| Start | `calibrated`, 65,536 calibration tokens |",
        "| Objective | 0 x LM + 1 x KL (T = 1, token_mean) + 0.2 x clone (relative, mean) |",
        "| Parity of the export | passed |",
        "| Bits per byte | 1.269 | 1.552 | 1.22× |",
        "| KL to the teacher (nats per token) | – | 1.074 | – |",
        "![Training losses](losses.png)",
    ):
        assert line in lines
    assert not any("held_out.png" in line for line in lines)


def test_facts_of_a_run_in_training(data: RunData) -> None:
    text = facts_markdown(replace(data, results=None, parity=None, start=None), {})
    assert "| Student | hidden size 288 |" in text
    assert "| Start | `calibrated` |" in text
    assert "Parity" not in text
    assert "## Scores" not in text


def test_names_can_not_break_the_markdown(data: RunData) -> None:
    assert data.recipe is not None
    text = facts_markdown(replace(data, recipe=replace(data.recipe, teacher="a|b`c\n<i>[d](e)")), {})
    assert text.splitlines()[0] == "# a|b\\`c &lt;i&gt;\\[d\\](e), cloned from width 576 to 288"
    assert "| Teacher | `a\\|bc <i>[d](e)` |" in text
