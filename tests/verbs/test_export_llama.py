"""`lrc export --as llama`: published whole after the parity check, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrc.cli import main
from lrc.errors import NumericsError
from lrc.export import as_llama
from lrc.verbs.export_llama import export_llama
from tests.tiny import teacher_folder


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return teacher_folder(tmp_path / "student", "qwen2", hidden_size=28)


def test_a_qwen2_with_an_odd_head_size_becomes_a_llama_with_its_logits(
    tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(student), str(out), "--as", "llama"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert json.loads((out / "parity.json").read_text())["passed"] is True
    ids = torch.tensor([[1, 5, 6, 7, 9, 12]])
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (student, out)]
    assert [type(model).__name__ for model in models] == ["Qwen2ForCausalLM", "LlamaForCausalLM"]
    expected, found = [model(input_ids=ids).logits for model in models]
    assert (found - expected).abs().max() <= 1e-5
    texts = [model.generate(ids, max_new_tokens=8, do_sample=False) for model in models]
    assert torch.equal(*texts)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (student / name).read_bytes()
    assert not (out / "sft.json").exists()


def test_the_card_of_a_fine_tuned_ones_export_can_tell(tmp_path: Path, student: Path) -> None:
    (student / "sft.json").write_text('{"steps": 3}\n')
    export_llama(str(student), tmp_path / "out")
    assert (tmp_path / "out" / "sft.json").read_text() == '{"steps": 3}\n'


def test_padding_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = teacher_folder(tmp_path / "odd", "qwen2", hidden_size=30)
    export_llama(str(student), tmp_path / "out")
    assert "30 is padded with zeros to 32" in capsys.readouterr().err


def test_a_mismatch_publishes_nothing(tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = as_llama.llama_tensor

    def wrong(plan: Any, stored: Any, name: str) -> torch.Tensor:
        tensor = right(plan, stored, name)
        return tensor * 1.01 if name.endswith("1.mlp.down_proj.weight") else tensor

    monkeypatch.setattr(as_llama, "llama_tensor", wrong)
    with pytest.raises(NumericsError):
        export_llama(str(student), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_dry_run_writes_nothing(tmp_path: Path, student: Path) -> None:
    assert main(["export", str(student), str(tmp_path / "out"), "--as", "llama", "--dry-run"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
