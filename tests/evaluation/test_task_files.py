"""The task files: the stock ones but for the place of the data, read by lm-evaluation-harness's own loader."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrc.errors import ConfigError, DataError
from lrc.evaluation.task_files import STOCK, TaskFiles, find_data, stock_files, tasks_root, write_task_files
from lrc.evaluation.task_names import SEED
from tests.evaluation.made_up_tasks import SUBJECTS, write_tasks_data

SINGLE = [name for name in SEED if name != "mmlu"]
pytestmark = pytest.mark.filterwarnings("ignore")
"""What other libraries warn of when lm_eval imports them."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> TaskFiles:
    root = tmp_path_factory.mktemp("files")
    data = write_tasks_data(root / "data")
    (root / "tasks").mkdir()
    return write_task_files(root / "tasks", data, SEED, stock=stock_files(SINGLE, None))


def loaded(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    config: dict[str, Any] = load_yaml(path, resolve_func=False)
    return config


@pytest.mark.parametrize("name", SINGLE)
def test_only_the_place_of_the_data_changes(written: TaskFiles, name: str) -> None:
    ours, stock = loaded(written.folder / f"{name}.yaml"), loaded(tasks_root() / STOCK[name])
    changed = {key for key in {*ours, *stock} if ours.get(key) != stock.get(key)}
    assert changed <= {
        "tag",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "fewshot_split",
    }
    assert ours["dataset_path"] == "json"
    scored = stock.get("test_split") or stock["validation_split"]
    files = ours["dataset_kwargs"]["data_files"]
    assert files[scored] == str(written.folder.parent / "data" / f"{name}.jsonl")
    named = {ours.get(key) for key in ("training_split", "validation_split", "test_split")} - {None}
    assert named == set(files)


def test_examples_are_read_where_a_file_of_them_lies(written: TaskFiles) -> None:
    files = loaded(written.folder / "arc_easy.yaml")["dataset_kwargs"]["data_files"]
    assert set(files) == {"test", "validation"}
    assert files["validation"].endswith("/arc_easy_validation.jsonl")
    assert set(loaded(written.folder / "arc_challenge.yaml")["dataset_kwargs"]["data_files"]) == {"test"}


def test_mmlu_is_split_by_subject_and_grouped_as_the_stock_group(written: TaskFiles) -> None:
    folder = written.folder / "mmlu"
    rows = [json.loads(line) for line in (written.folder.parent / "data/mmlu.jsonl").read_text().splitlines()]
    for subject, count in SUBJECTS.items():
        own = [json.loads(line) for line in (folder / f"{subject}.jsonl").read_text().splitlines()]
        assert own == [row for row in rows if row["subject"] == subject]
        assert len(own) == count
        config, stock = (loaded(place / f"mmlu_{subject}.yaml") for place in (folder, tasks_root() / "mmlu/default"))
        assert config["description"] == stock["description"]
        assert config["dataset_kwargs"]["data_files"]["dev"] == str(folder / f"{subject}_dev.jsonl")
        path, lines = written.lines[f"mmlu_{subject}"]
        assert path.name == "mmlu.jsonl"
        assert [rows[line - 1] for line in lines] == own
    groups = {path.stem: loaded(path) for path in folder.glob("_*.yaml")}
    assert groups["_mmlu"]["task"] == [group for group in groups["_mmlu"]["task"] if f"_{group}" in groups]
    members = {name for group in groups["_mmlu"]["task"] for name in groups[f"_{group}"]["task"]}
    assert members == {f"mmlu_{subject}" for subject in SUBJECTS}
    assert groups["_mmlu_stem"]["task"] == ["mmlu_anatomy", "mmlu_astronomy"]
    assert {str(group["aggregate_metric_list"]) for group in groups.values()} == {
        "[{'metric': 'acc', 'weight_by_size': True}]"
    }


def test_a_cache_folder_can_be_named(tmp_path: Path) -> None:
    data = write_tasks_data(tmp_path / "data")
    (tmp_path / "tasks").mkdir()
    write_task_files(tmp_path / "tasks", data, ["piqa"], stock=stock_files(["piqa"], None), cache_dir=tmp_path / "c")
    assert yaml.safe_load((tmp_path / "tasks/piqa.yaml").read_text())["dataset_kwargs"]["cache_dir"] == str(
        tmp_path / "c"
    )


def test_bad_examples_are_refused_too(tmp_path: Path) -> None:
    data = write_tasks_data(tmp_path / "data")
    (data / "arc_easy_validation.jsonl").write_text("{}\n")
    (tmp_path / "tasks").mkdir()
    with pytest.raises(DataError, match=r"arc_easy_validation\.jsonl:1: "):
        write_task_files(tmp_path / "tasks", data, ["arc_easy"], stock=stock_files(["arc_easy"], None))


def test_other_tasks_are_found_in_the_index(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("task: own\n")
    assert stock_files(["piqa", "own"], {"own": own}) == {"piqa": tasks_root() / STOCK["piqa"], "own": own}
    with pytest.raises(ConfigError, match="blimp is a group of tasks"):
        stock_files(["blimp"], {"blimp": None})


def test_every_stock_file_is_where_it_is_expected() -> None:
    assert set(stock_files(STOCK, None)) == set(STOCK)


def test_a_task_that_names_no_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: own\noutput_type: multiple_choice\n")
    (tmp_path / "own.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="names no split to score"):
        write_task_files(tmp_path, tmp_path, ["own"], stock={"own": tmp_path / "own.yaml"})


def test_a_data_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-dir must be a folder"):
        find_data(tmp_path / "absent", ["piqa"])
