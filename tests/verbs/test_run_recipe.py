"""Settings of later verbs come from the run that a checkpoint or a student lies in."""

from pathlib import Path

import pytest

from lrc.config import ConvertConfig, EvaluateConfig
from lrc.training.launch import write_recipe
from lrc.verbs.run_recipe import convert_settings, evaluate_settings
from tests.tiny import tiny_recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    recipe = tiny_recipe(tmp_path, convert__dtype="float16", evaluate__sample_tokens=7, evaluate__tokens=99)
    folder = tmp_path / "run"
    for name in ("train/checkpoint-2", "convert", "sft"):
        (folder / name).mkdir(parents=True)
    write_recipe(folder / "train" / "recipe.yaml", recipe)
    return folder


def test_a_checkpoint_is_converted_as_its_run_says(run: Path) -> None:
    checkpoint = run / "train" / "checkpoint-2"
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(b"")
    assert convert_settings(checkpoint).dtype == convert_settings(weights).dtype == "float16"
    assert convert_settings(run / "convert") == ConvertConfig()
    assert convert_settings(Path("nowhere/checkpoint-2")) == ConvertConfig()


def test_a_student_is_scored_as_its_run_says(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("convert", "sft"):
        found = evaluate_settings(str(run / name))
        assert (found.sample_tokens, found.tokens, found.samples) == (7, 99, EvaluateConfig.samples)
    monkeypatch.chdir(run / "convert")
    assert evaluate_settings(".").tokens == 99
    assert evaluate_settings("owner/model") == evaluate_settings(str(run)) == EvaluateConfig()


def test_a_recipe_that_cannot_be_read_is_named_and_not_followed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "train" / "recipe.yaml"
    path.write_text(path.read_text() + "later: 1\n")
    assert evaluate_settings(str(run / "convert")) == EvaluateConfig()
    said = capsys.readouterr().err
    assert "note: the run's recipe is not followed." in said
    assert str(path) in said
    assert "later" in said
