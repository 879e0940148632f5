"""Loading and scoring tasks through the library: names, examples, permissions, and what is kept of each item."""

import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrc.errors import DataError
from lrc.evaluation import tasks
from lrc.evaluation.task_files import TaskFiles, stock_files, write_task_files
from lrc.evaluation.tasks import ModelScores, TaskSuite, chosen_metric, load_suite, open_manager, score_suite
from tests.evaluation.made_up_tasks import byte_model_folder, write_tasks_data

pytestmark = pytest.mark.filterwarnings("ignore")
"""What other libraries warn of when lm_eval imports them."""
OWN = """include: {stock}
task: own_{name}
tag: own_tag
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
training_split: null
"""
ROWS = """import random


def shuffled(docs):
    goals = docs["goal"][:]
    random.shuffle(goals)
    return docs.remove_columns("goal").add_column("goal", goals)


def first(docs):
    return docs.select(range(2))
"""
FIRST = "process_docs: !function rows.first"
"""A task's own code that changes or chooses rows, as GPQA's and MMLU-Pro's do."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TaskFiles:
    """Task files of PIQA and SciQ, and a tag and two groups of two own tasks, one of them with a score."""
    root = tmp_path_factory.mktemp("tasks")
    data = write_tasks_data(root / "data", rows=6)
    (root / "files").mkdir()
    stock = stock_files(["piqa", "sciq"], None)
    files = write_task_files(root / "files", data, ["piqa", "sciq"], stock=stock, cache_dir=root / "cache")
    for name in ("a", "b"):
        text = OWN.format(stock=stock["piqa"], name=name, data=data / "piqa.jsonl")
        (files.folder / f"own_{name}.yaml").write_text(text)
        files.lines[f"own_{name}"] = (data / "piqa.jsonl", list(range(1, 7)))
    group = "group: {}\ntask: [own_a, own_b]\n"
    (files.folder / "plain.yaml").write_text(group.format("plain_group"))
    scored = group.format("scored_group") + "aggregate_metric_list: [{metric: acc}]\n"
    (files.folder / "scored.yaml").write_text(scored)
    alike = "aggregate_metric_list: [{metric: acc, weight_by_size: false}, {metric: acc_norm, filter_list: [other]}]\n"
    (files.folder / "alike.yaml").write_text(group.format("alike_group") + alike)
    (files.folder / "rows.py").write_text(ROWS)
    for name, line in (
        ("shuffled", "process_docs: !function rows.shuffled"),
        ("first", FIRST),
        ("zero", "num_fewshot: 0"),
    ):
        text = OWN.format(stock=stock["piqa"], name=name, data=data / "piqa.jsonl").replace("tag: own_tag", line)
        (files.folder / f"own_{name}.yaml").write_text(text)
        files.lines[f"own_{name}"] = (data / "piqa.jsonl", list(range(1, 7)))
    return files


def suite_of(files: TaskFiles, *names: str, num_fewshot: int | None = None) -> TaskSuite:
    return load_suite(open_manager(files.folder), names, num_fewshot=num_fewshot, allow_code=False, files=files)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("piqa", ["piqa"]), ("own_tag", ["own_a", "own_b"]), ("plain_group", ["own_a", "own_b"]), ("scored_group",) * 2],
)
def test_a_group_counts_as_one_if_it_has_a_score(files: TaskFiles, name: str, shown: Any) -> None:
    suite = suite_of(files, name)
    assert suite.names == ([shown] if isinstance(shown, str) else shown)
    assert suite.leaves("scored_group" if name == "scored_group" else suite.names[0])[0] in suite.loaded["tasks"]


def test_every_item_has_an_outcome_and_a_prompt(files: TaskFiles, tmp_path: Path) -> None:
    folder = byte_model_folder(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    suite = suite_of(files, "piqa", "sciq", "scored_group")
    found = score_suite(suite, model, tokenizer, batch_size=2, limit=None)
    assert set(found.outcomes) == {"piqa", "sciq", "own_a", "own_b"}
    for name, outcomes in found.outcomes.items():
        assert len(found.prompts[name]) == len(set(found.prompts[name])) == 6
        assert set(outcomes) == {"acc,none", "acc_norm,none"}
        for metric, values in outcomes.items():
            assert set(values) <= {0.0, 1.0}
            assert sum(values) / 6 == pytest.approx(found.metrics[name][metric])
    assert not any("stderr" in metric for metrics in found.metrics.values() for metric in metrics)
    assert found.metrics["scored_group"]["acc,none"] == found.metrics["own_a"]["acc,none"]
    again = score_suite(suite, model, tokenizer, batch_size=3, limit=4)
    assert again.outcomes["piqa"]["acc,none"] == found.outcomes["piqa"]["acc,none"][:4]


def test_a_group_counts_its_items_or_its_tasks_the_same(files: TaskFiles) -> None:
    suites = {name: suite_of(files, name) for name in ("scored_group", "alike_group", "piqa")}
    assert [suite.is_pooled(name, "acc,none") for name, suite in suites.items()] == [True, False, True]
    assert suites["alike_group"].is_pooled("alike_group", "acc_norm,none")


def test_a_task_that_is_random_is_the_same_for_each_model_and_as_the_library_loads_it(
    files: TaskFiles, tmp_path: Path
) -> None:
    folder = byte_model_folder(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    random.seed(7)
    before = random.getstate()
    prompts = []
    for _ in range(2):
        suite = suite_of(files, "own_shuffled")
        prompts += [score_suite(suite, model, tokenizer, batch_size=4, limit=None).prompts for _ in range(2)]
    assert random.getstate() == before
    assert prompts == [prompts[0]] * 4
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    library = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    theirs = simple_evaluate(library, tasks=["own_shuffled"], task_manager=open_manager(files.folder))
    assert theirs is not None
    assert [row["prompt_hash"] for row in theirs["samples"]["own_shuffled"]] == prompts[0]["own_shuffled"]


def test_a_task_that_says_no_examples_gets_none(files: TaskFiles) -> None:
    assert suite_of(files, "own_zero", num_fewshot=3).num_fewshot("own_zero") == 0


def test_a_task_that_leaves_rows_out_is_explained(files: TaskFiles) -> None:
    with pytest.raises(
        DataError, match=r"piqa\.jsonl must hold the rows that .* own_first scores .* its 6 .* takes 2\."
    ):
        suite_of(files, "own_first")


def test_prompts_that_are_cut_are_counted_and_not_shown(
    files: TaskFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = byte_model_folder(tmp_path / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    suite = suite_of(files, "sciq", "piqa")
    logger = logging.getLogger("lm_eval.models.huggingface")
    before = (logger.level, logger.filters[:])
    whole = score_suite(suite, model, tokenizer, batch_size=2, limit=None)
    lengths = [len(f"{prompt}{answer}".encode()) for prompt, answer in whole_requests(suite)]
    assert whole.num_truncated == 0
    model.config.max_position_embeddings = 60
    cut = score_suite(suite, model, tokenizer, batch_size=2, limit=None)
    assert cut.num_truncated == sum(length > 61 for length in lengths)
    assert 0 < cut.num_truncated < len(lengths)
    assert "Truncating" not in caplog.text
    assert (logger.level, logger.filters) == before


def whole_requests(suite: TaskSuite) -> list[tuple[str, str]]:
    """Return prompt and answer of each request that the library made last."""
    return [request.args for task in suite.loaded["tasks"].values() for request in task.instances]


def test_the_metric_of_the_tables_is_chosen() -> None:
    metrics = {
        "logiqa": {"acc,none": 0.2, "acc_norm,none": 0.3},
        "piqa": {"acc_norm,none": 0.3, "acc,none": 0.2},
        "gsm8k": {"exact_match,flexible-extract": 0.2, "exact_match,strict-match": 0.1},
        "own": {"bits_per_byte,none": 1.2},
    }
    scores = ModelScores(metrics=metrics, outcomes={}, prompts={})
    chosen = {name: chosen_metric(name, scores) for name in metrics}
    assert chosen == {
        "logiqa": "acc_norm,none",
        "piqa": "acc,none",
        "gsm8k": "exact_match,strict-match",
        "own": "bits_per_byte,none",
    }


def test_examples_need_rows_of_their_own(files: TaskFiles) -> None:
    assert suite_of(files, "piqa").num_fewshot("piqa") == 0
    with pytest.raises(DataError, match=r"piqa puts 3 examples.*piqa_train\.jsonl"):
        suite_of(files, "piqa", num_fewshot=3)


def test_a_task_that_can_not_be_loaded_is_explained(files: TaskFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = open_manager(files.folder)

    def fail(names: Any) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(manager, "load", fail)
    options: dict[str, Any] = {"num_fewshot": None, "allow_code": False}
    with pytest.raises(DataError, match=r"ConnectionError: no route\. Offline, name a folder .* --data-dir"):
        load_suite(manager, ["piqa"], files=None, **options)
    with pytest.raises(DataError, match=r"no route\.$"):
        load_suite(manager, ["piqa"], files=files, **options)


@pytest.mark.parametrize("before", [None, "0"])
def test_code_runs_only_inside_and_only_where_allowed(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    name = "HF_ALLOW_CODE_EVAL"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with tasks._code_execution(True):
        assert os.environ[name] == "1"
    assert os.environ.get(name) == before
    with tasks._code_execution(False):
        assert os.environ.get(name) == before
