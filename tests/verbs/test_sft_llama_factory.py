"""`lrc sft --write-llama-factory`: both files for a student and checked chats, nothing where something is wrong."""

import json
from pathlib import Path

import pytest
import yaml

from lrc.cli import main
from tests.sft.tiny_chats import sft_root, snapshot, turns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return sft_root(tmp_path)


def test_both_files_point_at_student_and_chats(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = root / "factory"
    assert main(["sft", str(root / "recipe.yaml"), "--write-llama-factory", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out / "sft.yaml")
    assert "24 sequences of 24 rows" in printed.err
    made = yaml.safe_load((out / "sft.yaml").read_text())
    assert (made["model_name_or_path"], made["dataset_dir"]) == (str(root / "student"), str(out))
    assert (made["cutoff_len"], made["learning_rate"]) == (128, 3e-3)
    assert json.loads((out / "dataset_info.json").read_text())["chats_0"]["file_name"] == str(root / "chats.jsonl")


def test_nothing_is_written_where_something_is_wrong(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--write-llama-factory", str(root / "factory")]
    before = snapshot(root)
    assert main(["sft", str(root / "recipe.yaml"), *out, "--dry-run"]) == 0
    assert main(["sft", str(root / "recipe.yaml"), *out, "sft.teacher_kl=1"]) == 2
    assert main(["sft", str(root / "recipe.yaml"), "--write-llama-factory", str(root / "student")]) == 2
    assert snapshot(root) == before
    (root / "chats.jsonl").write_text(json.dumps({"messages": turns("a")}) + "\n")
    assert main(["sft", str(root / "recipe.yaml"), *out]) == 2
    assert f"{root / 'chats.jsonl'}:1: the last turn" in capsys.readouterr().err
    assert not (root / "factory").exists()


def test_a_file_without_a_readable_row_is_refused_by_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "set").mkdir()
    (root / "chats.jsonl").rename(root / "set" / "a.jsonl")
    (root / "set" / "b.jsonl").write_text("{\n")
    chats = [f"sft.data={root / 'set'}", "sft.max_bad_share=0.5"]
    assert main(["sft", str(root / "recipe.yaml"), *chats, "--write-llama-factory", str(root / "factory")]) == 2
    assert f"{root / 'set' / 'b.jsonl'} must hold at least one readable row" in capsys.readouterr().err
    assert not (root / "factory").exists()


def test_neither_chats_nor_a_trained_student_are_deleted_by_overwrite(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = root / "factory"
    arguments = ["sft", str(root / "recipe.yaml"), "--write-llama-factory", str(out), "--overwrite"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    (out / "student").mkdir()
    assert main(arguments) == 2
    assert "holds the folder student" in capsys.readouterr().err
    (out / "student").rmdir()
    (root / "chats.jsonl").rename(out / "chats.jsonl")
    assert main([*arguments, f"sft.data={out / 'chats.jsonl'}"]) == 2
    assert "must not be or hold what is read" in capsys.readouterr().err
    assert (out / "chats.jsonl").is_file()
