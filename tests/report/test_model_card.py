"""The model card: front matter that the hub's own classes read, and sentences that follow the run's files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lrc.method_config import Method
from lrc.report.licence import Licence
from lrc.report.manifest_records import read_sources
from lrc.report.model_card import Origin, model_card
from lrc.report.read_run import read_run
from lrc.report.records import RunData
from tests.report.synthetic_run import manifest_values, write_json, write_run

APACHE = Licence(id="apache-2.0", found_in="README.md")
ORIGIN = Origin(teacher_id="owner/teacher", licence=APACHE, repo="me/small-teacher")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    run = write_run(tmp_path_factory.mktemp("card") / "demo", num_steps=4, num_layers=2)
    write_json(run / "prepare/manifest.json", manifest_values())
    return replace(read_run(run), sources=read_sources(run / "prepare/manifest.json"))


def card_of(tmp_path: Path, text: str) -> ModelCard:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    return ModelCard.load(tmp_path / "README.md")


def test_the_front_matter_is_what_the_hub_reads(data: RunData, tmp_path: Path) -> None:
    found = card_of(tmp_path, model_card(data, {}, ORIGIN)).data
    assert (found.license, found.base_model, found.library_name) == ("apache-2.0", "owner/teacher", "transformers")
    assert found.pipeline_tag == "text-generation"
    assert found.datasets == ["owner/chats", "owner/corpus"]
    assert found.model_name == "small-teacher"
    results = {result.dataset_config: result for result in found.eval_results}
    assert set(results) == {"ARC-Easy", "LogiQA"}
    arc = results["ARC-Easy"]
    assert (arc.dataset_type, arc.metric_type, arc.metric_name) == ("allenai/ai2_arc", "accuracy", "acc")
    assert arc.metric_value == 0.5125
    assert arc.dataset_args == {"num_few_shot": 0}


@pytest.mark.parametrize("scored", [{"limit": 50}, {"data": "embedded:benchmarks"}, {"data": "/home/someone/rows"}])
def test_scores_of_a_part_or_of_other_rows_stay_in_the_table(
    data: RunData, tmp_path: Path, scored: dict[str, Any]
) -> None:
    assert data.tasks is not None
    card = card_of(tmp_path, model_card(replace(data, tasks=replace(data.tasks, **scored)), {}, ORIGIN))
    assert (card.data.eval_results, card.data.model_name) == (None, None)
    assert "| arc_easy | acc |" in card.text


def test_the_sentences_follow_the_run(data: RunData) -> None:
    text = model_card(data, {}, ORIGIN)
    for part in (
        "# smollm2-135m-instruct, cloned from width 576 to 288",
        "| Objective | 0 x LM + 1 x KL (T = 1, token_mean) + 0.2 x clone (relative, mean) |",
        "The teacher is `owner/teacher`. Its licence is `apache-2.0`, says `README.md` of its folder.",
        "The student saw 8,192 tokens.",
        "| `hf://datasets/owner/corpus/data/*.parquet` | text | 1,000 | 640 | 812.3 k |",
        "| `chats.jsonl` | chat | 50 | 49 | 9.1 k |",
        "Then it was fine-tuned on 1,200 chats (1.23 M tokens) made of 1,204 rows of "
        "`hf://datasets/owner/chats/data/train_sft-*.parquet`.",
        "| arc_easy | acc | 2,376 | 63.50 ± 1.0 | 51.25 ± 1.0 |",
        'from_pretrained("me/small-teacher")',
        "a demonstration of the method, not a finished model",
    ):
        assert part in text
    assert "/home/someone" not in text, "no folder of this machine"


def test_what_is_unknown_is_said(data: RunData, tmp_path: Path) -> None:
    nothing = {"results": None, "tasks": None, "recipe": None, "parity": None, "fine_tuned": None}
    bare = replace(data, sources=(), train=(), held_out=(), **nothing)
    text = model_card(bare, {}, Origin(teacher_id=None, licence=Licence(id="unknown"), repo=None))
    assert "do not name the teacher. Its licence is unknown: look it up before" in text
    assert "The number of training tokens is unknown. The training data is unknown." in text
    assert "Not scored yet." in text
    assert "demonstration" not in text
    found = card_of(tmp_path, text).data
    assert found.license == "unknown"
    assert (found.base_model, found.datasets, found.eval_results) == (None, None, None)


def test_data_without_a_manifest_is_named_by_its_file(data: RunData) -> None:
    text = model_card(replace(data, sources=()), {}, ORIGIN)
    assert "The training data is `train.jsonl`; no manifest says what went into it." in text


def test_another_licence_keeps_its_name_and_link(data: RunData, tmp_path: Path) -> None:
    licence = Licence(id="other", name="own-terms", link="https://example.org/terms", found_in="LICENSE")
    text = model_card(data, {}, replace(ORIGIN, licence=licence))
    found = card_of(tmp_path, text).data
    assert (found.license, found.license_name, found.license_link) == (
        "other",
        "own-terms",
        "https://example.org/terms",
    )
    assert "Its licence is `own-terms`" in text


def test_a_failed_parity_is_not_kept_quiet(data: RunData) -> None:
    assert data.parity is not None
    assert "failed its parity check" in model_card(replace(data, parity=replace(data.parity, passed=False)), {}, ORIGIN)
    assert "failed its parity check" not in model_card(data, {}, ORIGIN)


def test_the_class_that_loads_is_the_students(data: RunData) -> None:
    assert "A plain model folder of the teacher's own class, which stock" in model_card(data, {}, ORIGIN)
    text = model_card(data, {}, replace(ORIGIN, model_type="llama"))
    assert "A plain model folder of the model type `llama`, which stock transformers loads:" in text
    text = model_card(data, {}, replace(ORIGIN, model_type="qwen2", quantised_by="torchao"))
    assert "A quantised model folder of the model type `qwen2`, which stock transformers loads with `torchao`" in text


def test_fine_tuning_is_said(data: RunData) -> None:
    text = model_card(data, {}, replace(ORIGIN, after_training="fine-tuned on chats with `lrc sft`"))
    assert "After distillation: fine-tuned on chats with `lrc sft`." in text


@pytest.mark.parametrize(
    ("method", "made", "bound", "tags", "base"),
    [
        (
            "only_kd",
            "all trained to follow the teacher's predictions.",
            "none is made of the teacher's",
            ["distillation"],
            "owner/teacher",
        ),
        (
            "tiny_bert",
            "all trained to follow the teacher's hidden states, attention and predictions.",
            "none is made of the teacher's",
            ["distillation"],
            "owner/teacher",
        ),
        ("origin", "all trained on text alone; the teacher did not run.", "have nothing of the teacher's", None, None),
    ],
)
def test_the_card_of_a_baseline_does_not_call_it_a_clone(
    data: RunData, tmp_path: Path, method: Method, made: str, bound: str, tags: list[str] | None, base: str | None
) -> None:
    assert data.recipe is not None
    baseline = replace(data, recipe=replace(data.recipe, method=method))
    origin = replace(ORIGIN, after_training="fine-tuned")
    clone, card = (card_of(tmp_path, model_card(found, {}, origin)) for found in (data, baseline))
    clone_words = (
        "cloned from width",
        "projections of the teacher's weights",
        "weights are computed from the teacher's",
    )
    assert [words in clone.text for words in clone_words] == [True] * 3
    assert [words in card.text for words in clone_words] == [False] * 3
    assert "low-rank-clone" in clone.data.tags
    assert (card.data.tags, card.data.base_model) == (tags, base)
    for part in ("A baseline for Low-Rank Clone (arXiv 2505.12781): random values in the shape", made, bound):
        assert part in card.text
    assert "| Start | from scratch |" in card.text
    assert "a demonstration of a baseline, not a finished model" in card.text
    assert ("After training: fine-tuned." in card.text) == (method == "origin")
    assert ("It inherits what its training text gets wrong" in card.text) == (method == "origin")
