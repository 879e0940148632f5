"""`lrc evaluate --tasks`: the numbers of lm-evaluation-harness's own command, and both models item by item."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate as hf_metrics
import pytest
import torch
from safetensors.torch import load_file, save_file

from lrc.config import EvaluateConfig
from lrc.errors import ConfigError, DataError
from lrc.evaluation.task_names import SEED
from lrc.models.compute import dtype_name
from lrc.report.terminal import print_scorecard
from lrc.verbs import evaluate as verb
from lrc.verbs import evaluate_tasks as module
from lrc.verbs.evaluate import evaluate
from lrc.verbs.task_settings import TaskSettings
from tests.evaluation.made_up_tasks import MAKERS, SUBJECTS, byte_model_folder, write_rows, write_tasks_data

PUBLISHED = "sciq,piqa,winogrande,arc_easy,logiqa,arc_challenge,boolq,mmlu,commonsense_qa"
"""As the published command writes them."""
NORMALISED = {"arc_challenge", "logiqa"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the nine tasks, a teacher and a student."""
    root = tmp_path_factory.mktemp("tasks")
    write_tasks_data(root / "data")
    byte_model_folder(root / "teacher")
    byte_model_folder(root / "student", seed=3, hidden_size=16)
    return root


def evaluated(root: Path, out: Path, **settings: Any) -> dict[str, Any]:
    chosen = TaskSettings(**{"tasks": "seed", "data_dir": str(root / "data"), **settings})
    path = evaluate(root / "student", out=out, teacher=str(root / "teacher"), settings=EvaluateConfig(), tasks=chosen)
    results: dict[str, Any] = json.loads(path.read_text())
    return results


@pytest.fixture(scope="module")
def results(root: Path) -> dict[str, Any]:
    """Both models on all nine tasks; the task files are kept."""
    return evaluated(root, root / "out", write_tasks=root / "task_files")


@pytest.mark.slow
def test_the_published_command_gives_the_same_numbers(root: Path, results: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", PUBLISHED, "--batch_size", "auto"]
    command += ["--trust_remote_code", "--num_fewshot", "0", "--model_args", f"pretrained={root / 'student'}"]
    command += ["--include_path", str(root / "task_files"), "--output_path", str(root / "lm_eval.json")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(root / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(next(root.glob("lm_eval*.json")).read_text())["results"]
    ours = {row["task"]: row for row in results["tasks"]["scores"]}
    assert set(ours) == set(PUBLISHED.split(","))
    for task, row in ours.items():
        metric = "acc_norm" if task in NORMALISED else "acc"
        assert row["metric"] == f"{metric},none"
        assert row["student"]["value"] == pytest.approx(theirs[task][f"{metric},none"], abs=1e-12), task
        if task != "mmlu":  # the library gives no error for a group with a subject of one row
            error = theirs[task][f"{metric}_stderr,none"]
            assert row["student"]["standard_error"] == pytest.approx(error, abs=1e-12), task
    assert len({row["student"]["value"] for row in ours.values()} - {0.0, 1.0}) >= 4


def test_a_row_a_task_in_the_papers_order_and_their_average(results: dict[str, Any]) -> None:
    tasks = results["tasks"]
    assert [row["task"] for row in tasks["scores"]] == list(SEED)
    assert [row["items"] for row in tasks["scores"]] == [12] * 8 + [sum(SUBJECTS.values())]
    assert {row["num_fewshot"] for row in tasks["scores"]} == {0}
    for role in ("teacher", "student", "difference"):
        mean = sum(row[role]["value"] for row in tasks["scores"]) / 9
        assert tasks["average"][role]["value"] == pytest.approx(mean)
    for row in [*tasks["scores"], tasks["average"]]:
        difference = row["difference"]
        assert difference["value"] == pytest.approx(row["student"]["value"] - row["teacher"]["value"])
        low, high = difference["interval"]
        assert (low + high) / 2 == pytest.approx(difference["value"], abs=1e-12)
        assert high - low == pytest.approx(2 * 1.96 * difference["standard_error"], rel=1e-4)
    assert "held_out" not in results
    assert set(results) == {"tasks", "student_hash", "versions", "machine"}


def test_a_model_beside_itself_differs_by_nothing(root: Path, tmp_path: Path) -> None:
    chosen = TaskSettings(tasks="piqa,arc_easy", data_dir=str(root / "data"))
    same = str(root / "student")
    path = evaluate(same, out=tmp_path, teacher=same, settings=EvaluateConfig(), tasks=chosen)
    scores = json.loads(path.read_text())["tasks"]["scores"]
    assert {row["task"] for row in scores} == {"piqa", "arc_easy"}
    assert len(scores) == 2
    for row in scores:
        assert row["teacher"] == row["student"]
        assert row["difference"] == {"value": 0.0, "standard_error": 0.0, "interval": [0.0, 0.0]}


def test_a_limit_takes_the_first_items_and_the_table_says_so(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluated(root, tmp_path / "out", tasks="sciq", limit=5)
    row = results["tasks"]["scores"][0]
    assert (row["items"], results["tasks"]["limit"], results["tasks"]["average"]) == (5, 5, None)
    assert row["student"]["value"] * 5 == pytest.approx(round(row["student"]["value"] * 5))
    command = results["tasks"]["command"]
    assert " --include_path TASKS --limit 5 " in command
    assert command.endswith(" (write them with --write-tasks TASKS)")
    capsys.readouterr()
    print_scorecard(tmp_path / "out" / "results.json")
    printed = capsys.readouterr().out
    assert "the first 5 items of each" in printed
    assert f"{100 * row['student']['value']:.2f} ± " in printed


def test_both_models_see_the_same_examples(root: Path, tmp_path: Path) -> None:
    results = evaluated(root, tmp_path / "out", tasks="arc_easy,mmlu", num_fewshot=2)  # pairing asserts equal prompts
    assert {row["num_fewshot"] for row in results["tasks"]["scores"]} == {2}


def test_held_out_text_and_tasks_go_into_one_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "the old bridge sings at night " * 20}) + "\n")
    settings = EvaluateConfig(tokens=64, sequence_length=32, samples=1, sample_tokens=3, compute_dtype="float32")
    chosen = TaskSettings(tasks="piqa", data_dir=str(root / "data"), limit=2)
    held_out = str(tmp_path / "text.jsonl")
    path = evaluate(root / "student", out=tmp_path / "out", held_out=held_out, settings=settings, tasks=chosen)
    results = json.loads(path.read_text())
    assert results["held_out"]["positions"] > 0
    assert [row["teacher"] for row in results["tasks"]["scores"]] == [None]


def test_reasoning_generates_after_examples_and_leaves_code_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{n} and {n}?", "answer": f"Twice.\n#### {2 * n}"} for n in range(8)]
    write_rows(tmp_path / "gsm8k.jsonl", rows[:2])
    write_rows(tmp_path / "gsm8k_train.jsonl", rows[2:])
    results = evaluated(root, tmp_path / "out", tasks="reasoning", data_dir=str(tmp_path))
    assert "Left out: humaneval, mbpp." in capsys.readouterr().err
    (row,) = results["tasks"]["scores"]
    assert (row["task"], row["metric"], row["items"]) == ("gsm8k", "exact_match,strict-match", 2)
    assert row["num_fewshot"] == 5
    assert "exact_match,flexible-extract" in results["tasks"]["metrics"]["student"]["gsm8k"]


def test_the_command_names_the_task_files_that_were_written(root: Path, results: dict[str, Any]) -> None:
    command = results["tasks"]["command"]
    assert command.startswith("lm_eval --model hf ")
    assert f" --include_path {root / 'task_files'} " in command
    assert "write them" not in command


class _Passes:
    """In place of the hub's metric: everything that a model writes passes, and nothing is run."""

    def compute(self, **what: Any) -> tuple[dict[str, float], dict[str, Any]]:
        assert len(what["predictions"]) == len(what["references"]) == 1
        assert what["k"] == [1]
        return {"pass@1": 1.0}, {}


def test_code_tasks_are_scored_by_the_hubs_metric_where_they_may_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(hf_metrics, "load", lambda name: loaded.append(name) or _Passes())
    student = byte_model_folder(tmp_path / "student")
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    (tmp_path / "data").mkdir()
    humaneval = [{"prompt": f"def f{n}():\n", "test": "def check(f): f()", "entry_point": f"f{n}"} for n in range(2)]
    write_rows(tmp_path / "data" / "humaneval.jsonl", humaneval)
    mbpp = [{"text": f"Write f{n}.", "test_list": [f"assert f{n}() == {m}" for m in range(3)]} for n in range(2)]
    write_rows(tmp_path / "data" / "mbpp.jsonl", mbpp)
    chosen = TaskSettings(tasks="humaneval,mbpp", data_dir=str(tmp_path / "data"), allow_code=True)
    path = evaluate(student, out=tmp_path / "out", settings=EvaluateConfig(), tasks=chosen)
    tasks = json.loads(path.read_text())["tasks"]
    rows = [(row["task"], row["metric"], row["items"], row["num_fewshot"]) for row in tasks["scores"]]
    assert rows == [("humaneval", "pass@1,create_test", 2, 0), ("mbpp", "pass_at_1,none", 2, 3)]
    assert [row["student"]["value"] for row in tasks["scores"]] == [1.0, 1.0]
    assert set(loaded) == {"code_eval"}
    assert tasks["command"].startswith("HF_ALLOW_CODE_EVAL=1 lm_eval --model hf ")
    assert " --confirm_run_unsafe_code " in tasks["command"]
    assert "HF_ALLOW_CODE_EVAL" not in os.environ


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the expensive part begins."""
    for place in (verb, module):
        monkeypatch.setattr(place, "load_model", lambda *args, **options: pytest.fail("a model is loaded"))


class _FakeManager:
    all_tasks = ("arc_easy", "piqa", "mmlu", "hellaswag")
    task_index: dict[str, Any] = {}  # noqa: RUF012


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("data_dir", [None, "data"])
def test_an_unknown_task_is_named_with_the_nearest(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_dir: str | None
) -> None:
    monkeypatch.setattr(module, "open_manager", lambda folder: _FakeManager)
    where = None if data_dir is None else str(root / data_dir)
    with pytest.raises(ConfigError, match=r"no task 'arc_esay'. Did you mean 'arc_easy'\?"):
        evaluated(root, tmp_path / "out", tasks="piqa,arc_esay", data_dir=where)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": None}, "need --tasks"),
        ({"tasks": "seed", "limit": 0}, "--limit must be at least 1, found 0"),
        ({"tasks": "seed", "batch_size": "all"}, "--batch-size must be 'auto' or a number above 0, found 'all'"),
        ({"tasks": "seed", "num_fewshot": -1}, "--num-fewshot must be at least 0"),
        ({"tasks": "humaneval"}, "runs the code that the model writes.*--allow-code"),
        ({"tasks": "seed,,piqa"}, "separated by commas"),
        ({"tasks": "seed", "data_dir": None, "write_tasks": Path("x")}, "needs --data-dir"),
        ({"tasks": "seed", "data_dir": "embedded:benchmark"}, "embedded:benchmarks, found"),
    ],
)
def test_settings_that_can_not_work_are_refused(
    root: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluated(root, tmp_path / "out", **settings)


@pytest.mark.usefixtures("no_models")
def test_nothing_to_score_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Nothing is named to score"):
        evaluate(root / "student", out=tmp_path, settings=EvaluateConfig())


@pytest.mark.usefixtures("no_models")
def test_a_folder_of_task_files_is_never_written_over(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(ConfigError, match="must name a new folder"):
        evaluated(root, tmp_path / "out", write_tasks=tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note.txt"]


@pytest.mark.usefixtures("no_models")
def test_missing_data_names_the_files_and_the_tasks_that_are_there(root: Path, tmp_path: Path) -> None:
    data = write_tasks_data(tmp_path / "data")
    for name in ("logiqa", "sciq"):
        (data / f"{name}.jsonl").unlink()
    with pytest.raises(DataError, match=r"must hold logiqa.jsonl, sciq.jsonl") as caught:
        evaluated(root, tmp_path / "out", data_dir=str(data), write_tasks=tmp_path / "kept")
    there = [name for name in SEED if name not in ("logiqa", "sciq")]
    assert f"--tasks {','.join(there)}." in str(caught.value)
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("piqa", {"goal": None}, "must have the field 'goal'"),
        ("piqa", {"label": "1"}, "'label' must be a whole number, found \"1\""),
        ("piqa", {"label": 2}, "must be one of 2 choices, found 2"),
        ("arc_easy", {"answerKey": "Z"}, "does not fit the task arc_easy: ValueError"),
        ("commonsense_qa", {"answerKey": "Z"}, "found 'Z'"),
        ("winogrande", {"answer": "3"}, "does not fit the task winogrande"),
        ("mmlu", {"subject": "anatomi"}, "'anatomi' is none of MMLU's 57 subjects. Did you mean 'anatomy'"),
        ("mmlu", {"answer": 4}, "must be one of 4 choices, found 4"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_file_and_line(
    root: Path, tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    data = write_tasks_data(tmp_path / "data")
    lines = (data / f"{name}.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **changes})
    (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        evaluated(root, tmp_path / "out", tasks=name, data_dir=str(data))
    assert f"{name}.jsonl:3: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.usefixtures("no_models")
def test_examples_never_come_from_the_scored_rows(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"piqa puts 2 examples into each prompt.*piqa_train\.jsonl"):
        evaluated(root, tmp_path / "out", tasks="piqa", num_fewshot=2)


@pytest.mark.usefixtures("no_models")
def test_a_dry_run_loads_the_tasks_and_writes_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = TaskSettings(tasks="piqa,sciq", data_dir=str(root / "data"))
    evaluate(root / "student", out=tmp_path / "out", settings=EvaluateConfig(), tasks=chosen, dry_run=True)
    assert capsys.readouterr().err.endswith("dry run: tasks piqa, sciq: good\n")
    assert list(tmp_path.iterdir()) == []


def test_the_stored_dtype_is_taken_and_the_faster_one_where_16_bits_may_be_slow(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "choose_dtype", lambda wanted, device: torch.float64)
    tensors = load_file(root / "student" / "model.safetensors")
    on_cpu_and_gpu = {"float32": ["float32"] * 2, "float16": ["float64", "float16"], "bfloat16": ["float64"] * 2}
    for stored, expected in on_cpu_and_gpu.items():
        folder = tmp_path / stored
        folder.mkdir()
        save_file({k: v.to(getattr(torch, stored)) for k, v in tensors.items()}, folder / "model.safetensors")
        assert [dtype_name(module._dtype(folder, torch.device(kind), "auto")) for kind in ("cpu", "cuda")] == expected


def test_every_published_task_has_made_up_rows() -> None:
    assert {*MAKERS, "mmlu"} == set(SEED)
