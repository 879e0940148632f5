"""`lrc serve-check` prints a line an engine, reads config.json alone, and refuses what is no student."""

import json
from pathlib import Path

import pytest

from lrc.cli import main
from tests.models.tiny_configs import tiny_config


def checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["serve-check", str(folder)]) == 0
    return capsys.readouterr().out


def test_a_line_an_engine_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_config("qwen2", hidden_size=28).save_pretrained(tmp_path)
    text = checked(tmp_path, capsys)
    assert "vLLM               re-express   its Qwen2 divides" in text
    assert f"-> lrc export {tmp_path} OUT --as llama" in text
    assert "transformers 5     as is" in text
    assert "GGUF Q8_0          no" in text


def test_a_config_that_the_installed_transformers_refuse_is_judged_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 30}))
    text = checked(tmp_path, capsys)
    assert "transformers 5     re-express" in text
    assert "not a multiple of the number of attention heads" in text


def test_a_folder_of_int8_weights_is_no_ordinary_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    quantised = {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {}}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantised))
    text = checked(tmp_path, capsys)
    assert "transformers 5     as is        with torchao installed" in text
    assert "llama.cpp (GGUF)   no           its weights are quantised (torchao)" in text
    assert text.count("-> export the student it came from") == 3
    assert "vLLM               not known    " in text


@pytest.mark.parametrize("name", ["missing", "empty", "other"])
def test_what_is_no_student_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert main(["serve-check", str(tmp_path / name)]) == 2
    assert "config" in capsys.readouterr().err
