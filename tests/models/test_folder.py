"""Model folders: what identifies their weights, reading by name, and folders that are not what they should be."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrc.errors import CheckpointError, ConfigError, LrcError
from lrc.models.folder import WEIGHTS, WEIGHTS_INDEX, ModelTensors, resolve_folder, weight_files, weights_hash
from tests.models.tiny_configs import tiny_config


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "wide.weight": torch.randn(3, 80, generator=generator),
        "narrow.weight": torch.randn(4, 3, 2, generator=generator).bfloat16(),
        "norm.weight": torch.randn(5, generator=generator),
        "scale": torch.tensor(3.0),
        "steps": torch.arange(4),
    }


def write_single(folder: Path, content: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}\n")
    save_file(content, folder / WEIGHTS)
    return folder


def write_sharded(folder: Path, *shards: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}\n")
    places: dict[str, str] = {}
    for number, shard in enumerate(shards):
        name = f"model-{number}.safetensors"
        save_file(shard, folder / name)
        places |= dict.fromkeys(shard, name)
    (folder / WEIGHTS_INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


def shards() -> list[dict[str, Tensor]]:
    content = tensors()
    return [
        {name: content[name] for name in names} for names in (["steps", "wide.weight"], ["scale", "norm.weight"])
    ] + [{"narrow.weight": content["narrow.weight"]}]


# ---- the hash


def hash_of(folder: Path, content: dict[str, Tensor]) -> str:
    return weights_hash(write_single(folder, content))


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("wide.weight", (0, 0)),
        ("wide.weight", (0, 63)),
        ("narrow.weight", (0, 0, 0)),
        ("narrow.weight", (0, 2, 1)),
        ("norm.weight", (0,)),
        ("scale", ()),
        ("steps", (0,)),
        ("norm.weight", (1,)),
        ("narrow.weight", (1, 0, 0)),
    ],
)
def test_one_changed_value_at_the_front_of_a_tensor_changes_the_hash(
    tmp_path: Path, name: str, index: tuple[int, ...]
) -> None:
    before = hash_of(tmp_path / "before", tensors())
    changed = tensors()
    changed[name][index] += 1
    assert hash_of(tmp_path / "after", changed) != before


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "less", "more"])
def test_another_name_shape_dtype_or_set_of_tensors_changes_the_hash(tmp_path: Path, change: str) -> None:
    before = hash_of(tmp_path / "before", tensors())
    changed = tensors()
    if change == "name":
        changed["norm.gain"] = changed.pop("norm.weight")
    elif change == "shape":
        changed["wide.weight"] = changed["wide.weight"][:2].contiguous()
    elif change == "dtype":
        changed["steps"] = changed["steps"].view(torch.float64)
    elif change == "less":
        del changed["scale"]
    else:
        changed["another"] = torch.zeros(1)
    assert hash_of(tmp_path / "after", changed) != before


def test_the_hash_does_not_depend_on_how_the_tensors_are_laid_out_in_files(tmp_path: Path) -> None:
    one = hash_of(tmp_path / "one", tensors())
    assert one == hash_of(tmp_path / "turned", dict(reversed(tensors().items())))
    assert one == weights_hash(write_sharded(tmp_path / "many", *shards()))
    assert one == weights_hash(write_sharded(tmp_path / "order", *reversed(shards())))
    assert len(one) == 64


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_has_one_hash_sharded_or_not(tmp_path: Path, tied: bool) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("llama", tie_word_embeddings=tied))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(weight_files(tmp_path / "one")) == 1
    assert len(weight_files(tmp_path / "many")) > 1
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "many")


# ---- reading


@pytest.mark.parametrize("sharded", [False, True])
def test_tensors_are_read_by_name_as_they_are_stored(tmp_path: Path, sharded: bool) -> None:
    folder = write_sharded(tmp_path, *shards()) if sharded else write_single(tmp_path, tensors())
    found = ModelTensors(folder)
    assert set(found.names()) == set(tensors())
    for name, tensor in tensors().items():
        assert name in found
        assert found.read(name).dtype == tensor.dtype
        assert torch.equal(found.read(name), tensor)
        assert found.shape_and_dtype(name)[0] == list(tensor.shape)
    assert found.shape_and_dtype("narrow.weight")[1] == "BF16"
    assert "absent" not in found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_model_s_dtype_is_that_of_its_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_single(tmp_path, {"a.steps": torch.arange(3), "b.weight": torch.zeros(2, dtype=dtype)})
    assert ModelTensors(folder).dtype() == dtype


def test_a_model_without_floats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be 16, 32 or 64 bit floats"):
        ModelTensors(write_single(tmp_path, {"steps": torch.arange(3)})).dtype()


def test_a_file_that_is_not_safetensors_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_single(tmp_path, tensors())
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
    with pytest.raises(CheckpointError, match="can't be read as safetensors") as caught:
        ModelTensors(folder)
    assert str(folder / WEIGHTS) in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be read as safetensors"):
        weights_hash(tmp_path)


# ---- the index


def test_weight_files_are_listed_once_and_sorted(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path, *shards())
    assert [path.name for path in weight_files(folder)] == [f"model-{number}.safetensors" for number in range(3)]


def test_an_index_that_names_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path, *shards())
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-1\.safetensors, which is not in"):
        weights_hash(folder)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": 5}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": ["b"]}}',
        "[]",
        "null",
    ],
)
def test_an_index_that_is_none_is_refused_by_name(tmp_path: Path, content: str) -> None:
    folder = write_sharded(tmp_path, *shards())
    (folder / WEIGHTS_INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="is not a weights index") as caught:
        weight_files(folder)
    assert str(folder / WEIGHTS_INDEX) in str(caught.value)


def test_a_folder_with_both_forms_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path, *shards())
    save_file({"single": torch.zeros(1)}, folder / WEIGHTS)
    assert weight_files(folder) == [folder / WEIGHTS]


# ---- finding a folder


def test_a_model_folder_is_found_in_either_form(tmp_path: Path) -> None:
    for folder in (write_single(tmp_path / "one", tensors()), write_sharded(tmp_path / "many", *shards())):
        assert resolve_folder(str(folder)) == folder


def test_a_folder_without_weights_or_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold a config\.json") as missing_config:
        resolve_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"must hold {WEIGHTS} or") as missing_weights:
        resolve_folder(str(tmp_path))
    assert str(tmp_path) in str(missing_config.value)
    assert str(tmp_path) in str(missing_weights.value)


@pytest.mark.parametrize("source", ["./missing", "missing", "/missing/model", "~/missing", "a/b/c"])
def test_a_path_that_is_not_there_is_refused_by_name(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        resolve_folder(source)
    assert repr(source) in str(caught.value)


def test_a_hub_id_that_can_t_be_fetched_is_refused_by_name_and_may_be_a_mistyped_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LrcError, match=r"^owner/no-such-model can't be fetched from the hub") as caught:
        resolve_folder("owner/no-such-model")
    assert f"there is no folder {tmp_path / 'owner' / 'no-such-model'}: " in str(caught.value)


def test_a_folder_for_its_tokenizer_alone_needs_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_folder(str(tmp_path), weights=False) == tmp_path
    with pytest.raises(CheckpointError, match=rf"must hold {WEIGHTS} or"):
        resolve_folder(str(tmp_path))


@pytest.mark.parametrize("weights", [True, False])
def test_weights_are_fetched_from_the_hub_only_where_they_are_needed(
    tmp_path: Path, weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = ["config.json", "tokenizer.json", "LICENSE", "model-1.safetensors", WEIGHTS_INDEX, "original/a.json"]

    def snapshot_download(source: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert source == "owner/name"
        for name in filter_repo_objects(repository, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / name).write_text("{}")
        return str(tmp_path)

    monkeypatch.setattr("lrc.models.folder.snapshot_download", snapshot_download)
    assert resolve_folder("owner/name", weights=weights) == tmp_path
    fetched = {path.name for path in tmp_path.iterdir()}
    assert fetched == set(repository[:5] if weights else repository[:3])
