"""What `lrc sft` refuses before it reads the chats: exit code 2, the remedy named, nothing written."""

import shutil
from pathlib import Path

import pytest

from lrc.cli import main
from lrc.config import load_recipe
from lrc.errors import CheckpointError
from lrc.verbs.sft_inputs import chat_encoder, check_inputs
from tests.sft.tiny_chats import CHATML, chat_student, chat_tokenizer, sft_root, snapshot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return sft_root(tmp_path)


def test_what_is_right_passes(root: Path) -> None:
    inputs = check_inputs(load_recipe(root / "recipe.yaml", ("sft.teacher_kl=1",)), resume=None, overwrite=False)
    assert (inputs.student, inputs.teacher, inputs.resume) == (root / "student", root / "teacher", False)
    assert (inputs.out, inputs.work) == (root / "run" / "sft", root / "run" / ".sft")


def test_the_student_is_by_default_the_converted_one(root: Path) -> None:
    shutil.copytree(root / "student", root / "run" / "convert")
    inputs = check_inputs(load_recipe(root / "recipe.yaml", ("sft.model=null",)), resume=None, overwrite=False)
    assert inputs.student == root / "run" / "convert"


def test_answers_end_with_what_generation_stops_at(root: Path) -> None:
    (root / "student" / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    tokenizer, encoder = chat_encoder(root / "student")
    assert encoder._end_ids == {7, 9, tokenizer.eos_token_id}


@pytest.mark.parametrize("content", ['{"eos_token_id": [7', "[7]"])
def test_a_damaged_generation_config_is_refused_by_name(root: Path, content: str) -> None:
    (root / "student" / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"student/generation_config\.json must .* Copy it anew"):
        chat_encoder(root / "student")


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("sft.model", "sft"),
        ("teacher", "sft"),
        ("sft.data", "sft/chats.jsonl"),
        ("sft.held_out", "sft/held_out.jsonl"),
        ("sft.data", ".sft/chats.jsonl"),
    ],
)
def test_what_is_read_is_not_deleted_by_overwrite(
    root: Path, setting: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = root / "run"
    shutil.copytree(root / "student", run / "sft")
    (run / "sft" / "sft.json").write_text("{}")
    (run / ".sft").mkdir()
    for folder in ("sft", ".sft"):
        for name in ("chats.jsonl", "held_out.jsonl"):
            shutil.copyfile(root / name, run / folder / name)
    before = snapshot(root)
    arguments = [str(root / "recipe.yaml"), "sft.teacher_kl=1", f"{setting}={run / place}", "--overwrite"]
    assert main(["sft", *arguments]) == 2
    assert "must not be or hold what is read" in capsys.readouterr().err
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sft.data=null"], "sft.data must name the chats"),
        (["sft.data=/nowhere/*.jsonl"], "'/nowhere/*.jsonl' matches none"),
        (["sft.model=/nowhere/x"], "'/nowhere/x' is neither"),
        (["sft.model=null"], "Run lrc convert, or name one"),
        (["sft.epochs=0"], "sft.epochs must be a finite number above 0"),
        (["sft.over_long=shorten"], "sft.over_long"),
        (["sft.held_out=/nowhere"], "'/nowhere' matches none"),
        (["--resume", "auto", "--overwrite"], "Give one of the two"),
        (["--resume", "checkpoint-4"], "--resume must be auto"),
    ],
)
def test_bad_settings_are_refused(
    root: Path, overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(root)
    assert main(["sft", str(root / "recipe.yaml"), *overrides]) == 2
    assert snapshot(root) == before
    assert said in capsys.readouterr().err


def test_a_student_that_is_none_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(said: str, *overrides: str) -> None:
        assert main(["sft", str(root / "recipe.yaml"), *overrides]) == 2
        assert said in capsys.readouterr().err
        assert not (root / "run").exists()

    chat_tokenizer(None).save_pretrained(root / "student")
    (root / "student" / "chat_template.jinja").unlink()
    refused("must have a chat template")
    shutil.copytree(root / "student", root / "checkpoint-4")
    (root / "checkpoint-4" / "config.json").rename(root / "checkpoint-4" / "lrc_config.json")
    refused("is a training checkpoint, not a student", f"sft.model={root / 'checkpoint-4'}")


def test_a_teacher_of_another_vocabulary_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat_student(root / "other", vocab_size=300)
    assert main(["sft", str(root / "recipe.yaml"), f"teacher={root / 'other'}", "sft.teacher_kl=1"]) == 2
    assert "has 300 tokens, the student 260" in capsys.readouterr().err
    chat_tokenizer(CHATML, merges=(("a", "b"),)).save_pretrained(root / "teacher")
    assert main(["sft", str(root / "recipe.yaml"), "sft.teacher_kl=1"]) == 2
    assert "is not the student's" in capsys.readouterr().err
