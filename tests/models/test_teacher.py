"""Loading a teacher: what is refused and how, and that what is loaded is frozen."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrc.errors import CheckpointError, ConfigError
from lrc.models import teacher
from lrc.models.folder import check_source
from lrc.models.teacher import load_config, load_model, load_tokenizer
from tests.tiny import WORDS, teacher_folder, tiny_teacher

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return teacher_folder(tmp_path / "teacher")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(str(folder), dtype=dtype, device=CPU)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- sources


@pytest.mark.parametrize("source", ["owner/name", "Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M"])
def test_what_looks_like_a_hub_id_passes(source: str) -> None:
    check_source(source)


def test_a_folder_with_a_config_passes_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for source in ("model", "./model", str(tmp_path / "model")):
        check_source(source)


def test_a_file_is_refused_also_where_its_path_looks_like_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"a hub id \(owner/name\), but 'owner/name' is neither"):
        check_source("owner/name")


@pytest.mark.parametrize("load_it", [load_config, lambda source: load_model(source, dtype=torch.float32, device=CPU)])
def test_nothing_is_loaded_from_a_source_that_is_none(tmp_path: Path, load_it: Any) -> None:
    with pytest.raises(ConfigError, match="is neither"):
        load_it(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"must hold a config\.json"):
        load_it(str(tmp_path))


# ---- configs


def test_a_config_is_the_family_s_own(folder: Path) -> None:
    config = load_config(str(folder))
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llama", 32, 2)


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", '{"model_type": "no_such_family"}'], ids=["empty", "cut", "no type", "list", "new"]
)
def test_a_config_that_is_none_is_refused_in_one_line_that_names_it(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="can't be loaded: ") as caught:
        load_config(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"hidden_size": 30},
        {"rope_parameters": 5},
        {"dtype": "none"},
        {"model_type": ["llama"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_config_with_a_bad_value_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    change_config(folder, **changes)
    with pytest.raises(ConfigError, match="can't be loaded: "):
        load_config(str(folder))


# ---- weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_loaded_teacher_is_the_saved_one_frozen_and_for_inference(folder: Path, dtype: torch.dtype) -> None:
    model = load(folder, dtype)
    saved = dict(tiny_teacher("llama").named_parameters())
    assert not any(module.training for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    found = dict(model.named_parameters())
    assert found.keys() == saved.keys()
    for name, parameter in found.items():
        assert not parameter.requires_grad, name
        assert torch.equal(parameter, saved[name].to(dtype)), name


def test_loading_leaves_the_folder_as_it_was(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    load(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("is_terminal", [True, False])
def test_transformers_bars_are_left_to_terminals(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    switched_off: list[bool] = []
    stderr = SimpleNamespace(isatty=lambda: is_terminal)
    monkeypatch.setattr(teacher, "sys", SimpleNamespace(stderr=stderr))
    monkeypatch.setattr(teacher, "disable_progress_bar", lambda: switched_off.append(True))
    load(folder)
    assert bool(switched_off) is not is_terminal


@pytest.mark.parametrize("damage", ["cut", "gone", "of another size"])
def test_weights_that_can_t_be_read_are_refused_in_one_line_that_names_the_model(folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "gone":
        weights.unlink()
    else:
        change_config(folder, intermediate_size=64)
    with pytest.raises(CheckpointError, match="can't be loaded: ") as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        load(folder)


# ---- tokenizers


def test_a_tokenizer_is_the_folder_s_own(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer("w3 w0").input_ids == [WORDS.index("w3"), WORDS.index("w0")]
    assert tokenizer.eos_token_id == WORDS.index("<eos>")


def test_a_folder_without_a_tokenizer_has_none(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert load_tokenizer(folder) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_tokenizer_is_refused_in_one_line_that_names_its_folder(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="can't be loaded: ") as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
