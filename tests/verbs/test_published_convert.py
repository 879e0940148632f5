"""The published conversion command: its flags against what the checkpoint itself records."""

import json
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lrc.config import StudentConfig
from lrc.errors import CheckpointError, ConfigError
from lrc.export.original_student import OriginalStudent
from lrc.verbs.published_convert import main, translate

PUBLISHED = (
    "python convert_ckpt.py --ckpt-path CKPT.safetensors --target-hidden-size 1536 --raw-model-name TEACHER "
    "--save-path OUT --use-all-attn 1 --use-in-out-mlp 0 --tie-word-emb-proj 1"
)
PUBLISHED_FLAGS = shlex.split(PUBLISHED.partition("convert_ckpt.py ")[2])
STUDENT = StudentConfig(
    hidden_size=1536, attention_projections="all", ffn_projections="all", tie_embedding_projection=True
)
LEAST = ["--ckpt-path", "CKPT", "--save-path", "OUT"]


def message_of(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        translate([*LEAST, *flags])
    return str(caught.value)


def test_the_published_command_word_for_word() -> None:
    call = translate(PUBLISHED_FLAGS)
    assert call.checkpoint == Path("CKPT.safetensors")
    assert call.out == Path("OUT")
    assert call.teacher == "TEACHER"
    assert call.student == STUDENT
    assert (call.overwrite, call.dry_run, call.notes) == (False, False, ())


def test_dashes_and_underscores_are_the_same() -> None:
    turned = [word.replace("-", "_").replace("__", "--", 1) for word in PUBLISHED_FLAGS]
    assert turned[0] == "--ckpt_path"
    assert translate(turned) == translate(PUBLISHED_FLAGS)


@pytest.mark.parametrize(("word", "shared"), [("True", "io"), ("1", "io"), ("no", "all"), ("false", "all")])
def test_boolean_words(word: str, shared: str) -> None:
    student = translate([*LEAST, "--use-in-out-mlp", word]).student
    assert isinstance(student, StudentConfig)
    assert student.ffn_projections == shared


def test_without_a_record_the_flags_default_as_in_the_original() -> None:
    assert translate(LEAST).student == StudentConfig(
        hidden_size=1024, attention_projections="io", ffn_projections="all", tie_embedding_projection=False
    )


def test_with_a_record_no_flag_is_needed() -> None:
    call = translate(LEAST, STUDENT)
    assert (call.student, call.teacher) == (None, None)


def test_with_a_record_only_the_given_flags_are_stated() -> None:
    call = translate([*LEAST, "--use-in-out-mlp", "1"], STUDENT)
    assert call.student == StudentConfig(
        hidden_size=1536, attention_projections="all", ffn_projections="io", tie_embedding_projection=True
    )


def test_an_unknown_flag_gives_the_nearest_name() -> None:
    assert "did you mean --save-path?" in message_of("--save-paht", "OUT")


def test_required_flags_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        translate([])
    assert "--ckpt-path is required" in str(caught.value)
    assert "--save-path is required" in str(caught.value)


@pytest.mark.parametrize("flags", [("--tie-n", "2"), ("--use-std-like-attn", "1"), ("--target-hidden-size", "0")])
def test_what_can_not_be_honoured_is_refused_by_name(flags: tuple[str, str]) -> None:
    assert flags[0] in message_of(*flags)


def test_what_only_the_original_needed_is_noted() -> None:
    call = translate([*LEAST, "--gpus", "1", "--use_aux_loss", "1", "--target_rms_norm_eps", "1e-5"], STUDENT)
    assert len(call.notes) == 3
    assert call.student is None


def test_the_eps_of_the_originals_training_is_passed_on() -> None:
    call = translate([*PUBLISHED_FLAGS, "--target_rms_norm_eps", "1e-5"])
    assert call.student == OriginalStudent(sizes=STUDENT, rms_norm_eps=1e-5)
    assert call.notes == ()


class FakeConvert(ModuleType):
    """Stands for `lrc.verbs.convert`, which the command imports only when it calls it."""

    def __init__(self) -> None:
        super().__init__("lrc.verbs.convert")
        self.calls: list[tuple[Path, Path, dict[str, Any]]] = []

    def convert(self, checkpoint: Path, out: Path, **options: Any) -> Path:
        self.calls.append((checkpoint, out, options))
        return out


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeConvert:
    module = FakeConvert()
    monkeypatch.setitem(sys.modules, "lrc.verbs.convert", module)
    return module


def write_checkpoint(folder: Path, config: object) -> Path:
    folder.mkdir()
    (folder / "lrc_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def recorded_facts() -> dict[str, Any]:
    """What a checkpoint says of itself; its recipe is another version's, with a key that there is none of here."""
    student = {"hidden_size": 1536, "tie_embedding_projection": True}
    recipe = {"student": student, "no_such_key": 1}
    return {"teacher": "TEACHER", "teacher_hash": "0", "student": student, "recipe": recipe}


def test_main_converts_and_says_where_the_student_lies(fake: FakeConvert, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(PUBLISHED_FLAGS) == 0
    options = {"teacher": "TEACHER", "student": STUDENT, "overwrite": False, "dry_run": False}
    assert fake.calls == [(Path("CKPT.safetensors"), Path("OUT"), options)]
    assert capsys.readouterr().out == "student: OUT\n"


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_main_reads_what_the_checkpoint_records(name: str, fake: FakeConvert, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-10", recorded_facts())
    assert main(["--ckpt-path", str(folder / name), "--save-path", "OUT", "--target-hidden-size", "1200"]) == 0
    [(_, _, options)] = fake.calls
    assert options["student"] == StudentConfig(hidden_size=1200, tie_embedding_projection=True)


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_main_reads_the_record_of_a_checkpoint_that_a_kill_left_set_aside(
    name: str, fake: FakeConvert, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / ".checkpoint-10.replaced", recorded_facts())
    named = tmp_path / "checkpoint-10" / name
    assert main(["--ckpt-path", str(named), "--save-path", "OUT", "--target-hidden-size", "1200"]) == 0
    [(checkpoint, _, options)] = fake.calls
    assert checkpoint == named  # `convert` finds it by itself
    assert options["student"] == StudentConfig(hidden_size=1200, tie_embedding_projection=True)


@pytest.mark.parametrize("config", [{}, [], {**recorded_facts(), "student": {"no_such_key": 1}}])
def test_a_broken_record_is_refused(
    config: object, fake: FakeConvert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint-10", config)
    assert main(["--ckpt-path", str(folder), "--save-path", "OUT"]) == CheckpointError.exit_code == 2
    assert fake.calls == []
    assert "lrc_config.json" in capsys.readouterr().err
