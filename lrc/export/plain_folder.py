"""What a plain Hugging Face folder is made of: a config that old and new clients read alike, shards, copied files."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lrc.errors import ConfigError
from lrc.models.folder import WEIGHTS_INDEX
from lrc.models.stock import has_own_code, quantised_by

CONFIG = "config.json"
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
"""What binds a student as it does its teacher; many licences ask that their text goes with the weights."""
LAYERED_ROPE = ("gemma3_text", "olmo3")
"""Model types whose sliding and full layers turn differently, and that transformers 4 knew how to say so."""


def check_plain_weights(config: Any, student: Path) -> None:
    """Check that a student's weights are not quantised.

    Raises:
        ConfigError: They are.
    """
    if quantised_by(config) is not None:
        raise ConfigError(f"The student must hold plain weights, but {student} is quantised. Export what it came from.")


def write_config(config: Any, folder: Path) -> None:
    """Write `config.json` with the keys of transformers 5 and, beside them, those that transformers 4 reads.

    Without them transformers 4.57 takes a rotary base of 10,000, silently.

    Args:
        config: A transformers config.
        folder: The folder that is being written.
    """
    config.save_pretrained(folder)
    path = folder / CONFIG
    values = json.loads(path.read_text())
    stock_class = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(values["model_type"])
    if not has_own_code(config):  # a folder may bring code of its own for a class that transformers has too
        values.pop("auto_map", None)
    if isinstance(stock_class, str) and "auto_map" not in values:
        values["architectures"] = [stock_class]  # a text tower's config names the composite's class, or none
    # a field that transformers 5 stores under a shared name (num_experts as num_local_experts) has its own name too
    own_names = {own: values[shared] for own, shared in config.attribute_map.items() if shared in values}
    path.write_text(json.dumps(own_names | values | older_keys(values), indent=2, sort_keys=True) + "\n")
    path.chmod(0o644)


def older_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers 4 reads where transformers 5 writes `dtype` and `rope_parameters`.

    Args:
        values: Content of a `config.json` of transformers 5.

    Returns:
        `torch_dtype`, `rope_theta`, `rope_scaling` and the like, as far as the older form can say it.
    """
    older: dict[str, Any] = {}
    if values.get("dtype") is not None:
        older["torch_dtype"] = values["dtype"]
    rope = values.get("rope_parameters")
    if not rope:
        return older
    if not any(isinstance(part, dict) for part in rope.values()):
        return older | _older_rope(rope, values)
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    if values.get("model_type") not in LAYERED_ROPE or not full or not sliding:
        return older  # no older client knows the family
    if sliding["rope_theta"] != full["rope_theta"]:
        older["rope_local_base_freq"] = sliding["rope_theta"]
    return older | _older_rope(full, values)


def _older_rope(rope: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    older: dict[str, Any] = {"rope_theta": rope["rope_theta"]}
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if "partial_rotary_factor" in rope:
        older["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if "original_max_position_embeddings" in values:  # Phi-3 keeps it outside and counts the keys inside
        scaling.pop("original_max_position_embeddings", None)
    if values.get("model_type") == "phi3":
        scaling["type"] = scaling.pop("rope_type")
    older["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else scaling
    return older


def write_shards(
    shapes: Mapping[str, Tensor], folder: Path, tensor_of: Callable[[str], Tensor], max_shard_bytes: int
) -> None:
    """Write safetensors files and their index; only one file's tensors are in memory at a time.

    Args:
        shapes: Name to a tensor on the meta device with shape and dtype.
        folder: The folder that is being written.
        tensor_of: Makes a tensor, called once a name.
        max_shard_bytes: Largest file.
    """
    shards = split_torch_state_dict_into_shards(dict(shapes), max_shard_size=max_shard_bytes)
    for file_name, names in shards.filename_to_tensors.items():
        save_file({name: tensor_of(name) for name in names}, folder / file_name, metadata={"format": "pt"})
        (folder / file_name).chmod(0o644)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n")


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation config and the texts of licences, whichever there are.

    And the teacher's own code, if the config that was written needs it.
    """
    config = folder / CONFIG
    needs_code = config.is_file() and "auto_map" in json.loads(config.read_text())
    for pattern in (*COPIED, *TERMS, *(["*.py"] if needs_code else [])):
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
