"""int8 weights: reloaded by stock transformers, near the student, nothing pickled."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrc.errors import CheckpointError, ConfigError, NumericsError
from lrc.export import int8
from lrc.export.int8 import PARITY_NAME, check_int8, load_int8, write_int8
from lrc.export.plain_folder import COPIED
from lrc.export.probe import log_probabilities
from tests.tiny import teacher_folder

pytest.importorskip("torchao")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("int8") / "student", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def exported(student: Path) -> Path:
    out = student.with_name("out")
    return write_int8(student, out, config=check_int8(student), say=lambda line: None)


def test_stock_transformers_reloads_it_near_the_student(student: Path, exported: Path) -> None:
    facts = json.loads((exported / PARITY_NAME).read_text())
    assert facts["passed"]
    assert facts["reload_difference"] == 0.0
    assert facts["kl"] < 1e-3
    loaded = AutoModelForCausalLM.from_pretrained(exported)
    plain = AutoModelForCausalLM.from_pretrained(student)
    ids = [[5, 6, 7, 8]]
    found, expected = log_probabilities(loaded, ids), log_probabilities(plain, ids)
    assert 0 < float((found - expected).abs().max()) < 0.1
    assert len(AutoTokenizer.from_pretrained(exported)) == len(AutoTokenizer.from_pretrained(student))


def test_config_says_to_older_clients_what_the_student_says_and_keeps_the_quantisation(
    student: Path, exported: Path
) -> None:
    plain, found = (json.loads((folder / "config.json").read_text()) for folder in (student, exported))
    assert found["rope_theta"] == plain["rope_parameters"]["rope_theta"]
    assert found["torch_dtype"] == plain["dtype"]
    assert found["quantization_config"]["quant_method"] == "torchao"
    assert found["architectures"] == plain["architectures"]
    companions = {name for name in COPIED if (student / name).is_file()}
    assert companions <= {path.name for path in exported.iterdir()}


def test_linear_layers_are_int8_with_a_scale_a_row_and_the_rest_is_untouched(student: Path, exported: Path) -> None:
    assert not [path.name for path in exported.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert (exported / "model.safetensors").stat().st_mode & 0o777 == 0o644
    prefix = "model.layers.0.mlp.down_proj"
    with (
        safe_open(exported / "model.safetensors", framework="pt") as found,
        safe_open(student / "model.safetensors", framework="pt") as plain,
    ):
        quantised, scale = found.get_tensor(f"{prefix}._weight_qdata"), found.get_tensor(f"{prefix}._weight_scale")
        weight = plain.get_tensor(f"{prefix}.weight")
        name = "model.embed_tokens.weight"
        torch.testing.assert_close(found.get_tensor(name), plain.get_tensor(name), atol=0, rtol=0)
    assert quantised.dtype == torch.int8
    assert scale.numel() == weight.shape[0]
    assert (quantised.float() * scale.reshape(-1, 1) - weight).abs().max() <= scale.max() / 2 * 1.01


def test_quantised_student_is_refused(exported: Path) -> None:
    with pytest.raises(ConfigError, match="must hold plain weights"):
        check_int8(exported)


def test_without_torchao_the_package_is_named(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install torchao"):
        check_int8(student)


def test_model_that_reloads_otherwise_or_is_far_is_not_published(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path, *, dtype: torch.dtype, quantise: bool = False) -> nn.Module:
        model: nn.Module = load_int8(folder, dtype=dtype, quantise=quantise)
        if not quantise:
            with torch.no_grad():
                model.model.norm.weight *= 1.1  # type: ignore[union-attr]
        return model

    monkeypatch.setattr(int8, "load_int8", load)
    with pytest.raises(NumericsError, match="saved and loaded again"):
        write_int8(student, tmp_path / "out", config=check_int8(student), say=lambda line: None)
    monkeypatch.undo()
    monkeypatch.setattr(int8, "KL_LIMIT", 1e-12)
    with pytest.raises(NumericsError, match="must stay near the student"):
        write_int8(student, tmp_path / "out", config=check_int8(student), say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_output_that_exists_is_untouched(student: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("here")
    with pytest.raises(ConfigError, match="--overwrite"):
        write_int8(student, tmp_path, config=check_int8(student), say=lambda line: None)
    assert (tmp_path / "kept").read_text() == "here"


def test_the_head_is_not_quantised_though_it_is_a_linear_layer_of_its_own(student: Path, exported: Path) -> None:
    found, plain = load_file(exported / "model.safetensors"), load_file(student / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], plain["lm_head.weight"])
    assert not torch.equal(plain["lm_head.weight"], plain["model.embed_tokens.weight"])


def test_what_else_belongs_to_the_folder_is_added_before_it_is_published(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail(draft: Path) -> None:
        assert (draft / PARITY_NAME).is_file()
        assert not out.exists()
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="can't be written"):
        write_int8(student, out, config=check_int8(student), say=lambda line: None, finish=fail)
    assert not list(tmp_path.iterdir())
