"""The facts page names teacher, student, tokens, recipe and scores, and stays sound Markdown."""

from dataclasses import replace
from typing import Literal

import pytest

from lrc.method_config import PhasesConfig
from lrc.report.facts_page import code, escaped, facts_block, plot_blocks, scores_blocks
from lrc.report.plots import Plot
from lrc.report.read_run import read_run
from lrc.report.records import RunData
from tests.report.synthetic_run import write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return read_run(write_run(tmp_path_factory.mktemp("run"), num_steps=4, num_layers=2))


def test_facts_of_a_whole_run(data: RunData) -> None:
    lines = facts_block(data).splitlines()
    for line in (
        "| Teacher | `smollm2-135m-instruct` |",
        "| Student | 67.27 M parameters |",
        "| Hidden size | 576 -> 288 |",
        "| Training tokens | 8,192 |",
        "| Start | `calibrated`, 65,536 calibration tokens |",
        "| Objective | 0 x LM + 1 x KL (T = 1, token_mean) + 0.2 x clone (relative, mean) |",
        "| Steps | 120 |",
        "| Batch | 4 x 1 sequences on each process, 512 tokens each |",
        "| Optimiser | `adamw`, learning rate 0.0001, linear |",
        "| Projections | all attn, all ffn |",
        "| Parity of the export | passed |",
        "| Fine-tuning | 50 steps on 1,200 chats of `hf://datasets/owner/chats/data/train_sft-*.parquet` |",
        "| Chat tokens | 1,234,567, 654,321 of them answers that are learnt |",
        "| Teacher KL in fine-tuning | weight 0.5 |",
        "| Over-long or bad chats | 31 cut off, 4 left out |",
        "| Held-out chats, cross entropy | 3.123 -> 2.346 nats per token |",
        "| Held-out chats, KL to the teacher | 0.9876 -> 0.6543 nats per token |",
    ):
        assert line in lines


def test_scores_of_text_and_of_tasks(data: RunData) -> None:
    text = "\n\n".join(scores_blocks(data))
    assert "Held-out text: `held_out.jsonl`, 16,352 positions." in text
    assert "| Bits per byte | 1.269 | 1.552 | 1.22× |" in text
    assert "| KL to the teacher (nats per token) | – | 1.074 | – |" in text
    assert "| arc_easy | acc | 2,376 | 63.50 ± 1.0 | 51.25 ± 1.0 | -12.25 ± 0.9 | -14.0 to -10.5 |" in text
    assert "| Bits per byte" not in "".join(scores_blocks(replace(data, results=None)))
    assert "arc_easy" not in "".join(scores_blocks(replace(data, tasks=None)))
    assert scores_blocks(replace(data, results=None, tasks=None)) == []


def test_a_limit_is_said(data: RunData) -> None:
    assert data.tasks is not None
    text = "".join(scores_blocks(replace(data, tasks=replace(data.tasks, limit=50))))
    assert "on the hub's rows in percent ± standard error, on the first 50 items of each task" in text


def test_rows_that_are_not_the_hubs_are_named_without_their_place(data: RunData) -> None:
    assert data.tasks is not None
    for place, name in (("embedded:benchmarks", "benchmarks"), ("/home/someone/rows", "rows")):
        text = "".join(scores_blocks(replace(data, tasks=replace(data.tasks, data=place))))
        assert f"on rows of `{name}` in percent" in text


def test_facts_of_a_run_in_training(data: RunData) -> None:
    text = facts_block(replace(data, results=None, parity=None, start=None))
    assert "| Student | hidden size 288 |" in text
    assert "| Start | `calibrated` |" in text
    assert "Parity" not in text


def test_the_recipe_rows_follow_the_recipe(data: RunData) -> None:
    assert data.recipe is not None
    student = replace(
        data.recipe.student, attention_projections="io", ffn_projections="io", tie_embedding_projection=True
    )
    train = replace(data.recipe.train, optimizer="muon", batch_size=3, gradient_accumulation_steps=2, max_steps=208_000)
    texts = replace(data.recipe.data, sequence_length=2048)
    text = facts_block(replace(data, recipe=replace(data.recipe, student=student, train=train, data=texts)))
    assert "| Steps | 208,000 |" in text
    assert "| Batch | 3 x 2 sequences on each process, 2,048 tokens each |" in text
    assert "| Optimiser | `muon`, " in text
    assert "| Projections | io attn, io ffn, one for embedding and head |" in text


@pytest.mark.parametrize(
    ("correction", "words"), [("none", ""), ("outputs", ", MLP outputs corrected"), ("mlp", ", MLPs corrected")]
)
def test_corrections_are_named(data: RunData, correction: Literal["none", "outputs", "mlp"], words: str) -> None:
    assert data.recipe is not None
    student = replace(data.recipe.student, correction=correction)
    lines = facts_block(replace(data, recipe=replace(data.recipe, student=student))).splitlines()
    assert f"| Projections | all attn, all ffn{words} |" in lines


def test_plain_fine_tuning_of_local_chats_names_no_folder(data: RunData) -> None:
    assert data.fine_tuned is not None
    plain = replace(data.fine_tuned, data="/home/someone/c.jsonl", teacher_kl=0.0, left_out=0, truncated=0, kl=None)
    text = facts_block(replace(data, fine_tuned=plain))
    assert "| Fine-tuning | 50 steps on 1,200 chats of `c.jsonl` |" in text
    assert "| Teacher KL in fine-tuning | none |" in text
    assert "Over-long" not in text
    assert "Held-out chats, KL" not in text
    assert "ine-tuning" not in facts_block(replace(data, fine_tuned=None))


def test_a_baseline_and_a_dense_phase_are_named(data: RunData) -> None:
    assert data.recipe is not None
    text = facts_block(replace(data, recipe=replace(data.recipe, method="origin")))
    assert "| Method | `origin`, from scratch |" in text
    assert "Projections" not in text
    assert "| Objective | 1 x LM + 0 x KL (T = 1, token_mean) + 0 x clone (relative, mean) |" in text
    phases, objective = PhasesConfig(dense_share=0.25), replace(data.recipe.objective, kl_direction="skewed")
    text = facts_block(replace(data, recipe=replace(data.recipe, phases=phases, objective=objective)))
    assert "| Dense phase | the last 25% of the steps (mlp, replace) |" in text
    assert "1 x KL (skewed, T = 1, token_mean)" in text


def test_weights_of_terms_and_shares_of_the_rate_are_told(data: RunData) -> None:
    assert data.recipe is not None
    plain = facts_block(data)
    objective = replace(data.recipe.objective, clone_term_weights={"mlp-out": 5, "attn-q": 1}, clone_depth_slope=-0.9)
    train = replace(data.recipe.train, rate_shares={"gains": 0.5, "lm_head": 1})
    text = facts_block(replace(data, recipe=replace(data.recipe, objective=objective, train=train)))
    assert "x clone (relative, mean, mlp-out x 5, depth slope -0.9) |" in text
    assert f"learning rate {train.learning_rate:g}, gains x 0.5, " in text
    assert "slope" not in plain
    assert "gains x" not in plain


def test_plots_that_are_there_are_linked() -> None:
    assert plot_blocks({"losses": Plot(light_png=b"", dark_png=b"")}) == ["![Training losses](losses.png)"]
    assert plot_blocks({}) == []


def test_names_can_not_break_the_markdown(data: RunData) -> None:
    assert data.recipe is not None
    text = facts_block(replace(data, recipe=replace(data.recipe, teacher="a|b`c\n<i>[d](e)")))
    assert "| Teacher | `a\\|bc <i>[d](e)` |" in text
    assert escaped("a|b`c\n<i>[d](e)") == "a|b\\`c &lt;i&gt;\\[d\\](e)"
    assert code("a`b\n c") == "`ab c`"
