"""What a checkpoint says about itself (`lrc_config.json`) and the names of its tensors, also the original code's.

Our names: `projections.<module>`, `gains.<norm>.weight` and `corrections.<tensor>`, with the stock model's names;
readers that share a projection have `<parent>.input`, a projection shared by embedding and head is listed under the
embedding.
"""

import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrc.clone.sites import Variant
from lrc.config import Recipe, StudentConfig, named_answer, recipe_to_dict
from lrc.errors import CheckpointError
from lrc.models.dense import dense_to_facts

TRAINED_TENSORS = "model.safetensors"
LRC_CONFIG = "lrc_config.json"


def variant_of(student: StudentConfig) -> Variant:
    """Return the recipe's sharing of projections in the method's words."""
    return Variant(
        attention_projections=student.attention_projections,
        ffn_projections=student.ffn_projections,
        tie_embedding_projection=student.tie_embedding_projection,
        correction=student.correction,
    )


def versions() -> dict[str, str]:
    """List the versions that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in ("lrc", "torch", "transformers", "accelerate", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def checkpoint_facts(
    recipe: Recipe, *, teacher_hash: str, d_teacher: int, compute_dtype: str, step: int = 0, tokens: int = 0
) -> dict[str, Any]:
    """Make the content of `lrc_config.json`."""
    return {
        "format": 1,
        "teacher": recipe.teacher,
        "teacher_hash": teacher_hash,
        "d_teacher": d_teacher,
        "d_student": recipe.student.hidden_size,
        "student": recipe_to_dict(recipe)["student"],
        "method": recipe.method,
        "phase": dense_to_facts(None),
        "recipe": recipe_to_dict(recipe),
        "compute_dtype": compute_dtype,
        "step": step,
        "tokens": tokens,
        "versions": versions(),
    }


def read_facts(checkpoint: Path) -> dict[str, Any] | None:
    """Read `lrc_config.json` beside the weights; None if there is none (the original code's checkpoints).

    Raises:
        CheckpointError: The file is damaged.
    """
    path = checkpoint / LRC_CONFIG
    if not path.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        student = dict(facts["student"])
        facts["student"] = {key: named_answer("student", key, value) for key, value in student.items()}
        StudentConfig(**facts["student"])
        assert facts["teacher_hash"] and facts["teacher"]
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}. Convert from another checkpoint.") from error
    return facts


_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_ORIGINAL_LAYER = {
    # original name: (our name, stored transposed as [d_S, d_T]); see docs/formats.md
    "self_attn.zoom_q.weight": ("projections.{}.self_attn.q_proj", False),
    "self_attn.zoom_k.weight": ("projections.{}.self_attn.k_proj", False),
    "self_attn.zoom_v.weight": ("projections.{}.self_attn.v_proj", False),
    "self_attn.zoom_down.weight": ("projections.{}.self_attn.o_proj", True),
    "mlp.zoom_gate.weight": ("projections.{}.mlp.gate_proj", True),
    "mlp.zoom_down.weight": ("projections.{}.mlp.down_proj", True),
    "target_input_layernorm.weight": ("gains.{}.input_layernorm.weight", False),
    "target_post_attention_layernorm.weight": ("gains.{}.post_attention_layernorm.weight", False),
}
_ORIGINAL_MODEL = {
    "model.zoom.weight": ("projections.model.embed_tokens", True),
    "zoom_down.weight": ("projections.lm_head", True),
    "model.target_norm.weight": ("gains.model.norm.weight", False),
}


def is_original(names: set[str]) -> bool:
    """Whether tensor names are the original code's."""
    return any("zoom" in name or name.startswith("model.target_norm") for name in names)


def from_original(tensors: dict[str, Tensor], variant: Variant) -> tuple[dict[str, Tensor], list[str]]:
    """Translate the original code's trained tensors to our names and orientation (`[d_T, d_S]`).

    Args:
        tensors: Tensors by the original's names; a leading `module.` is dropped, teacher weights are passed over.
        variant: The flags that the run was trained with; they tell `zoom_up`'s two meanings apart.

    Returns:
        Our tensors, and the names of training-only tensors that were ignored (`zoom_out`).

    Raises:
        CheckpointError: The variant shares one projection between embedding and head, but they have two.
    """
    translated: dict[str, Tensor] = {}
    ignored = []
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix("module.")
        if "zoom_out" in name:
            ignored.append(name)
            continue
        found = _translate_name(name, variant)
        if found is not None:
            ours, transposed = found
            translated[ours] = tensor.T.contiguous() if transposed else tensor
    if variant.tie_embedding_projection:
        _drop_copy_for_head(translated)
    return translated, ignored


def _drop_copy_for_head(translated: dict[str, Tensor]) -> None:
    """Leave out a head's projection that is the embedding's once more, as a checkpoint with shared tensors has it."""
    head, embedding = translated.pop("projections.lm_head", None), translated.get("projections.model.embed_tokens")
    if head is not None and embedding is not None and not torch.equal(head.float(), embedding.float()):
        raise CheckpointError(
            "Embedding and head must share one projection with --tie-word-emb-proj 1 "
            "(student.tie_embedding_projection), but this checkpoint has two: zoom_down.weight is not "
            "model.zoom.weight. Convert it with --tie-word-emb-proj 0."
        )


def _translate_name(name: str, variant: Variant) -> tuple[str, bool] | None:
    if name in _ORIGINAL_MODEL:
        return _ORIGINAL_MODEL[name]
    layer = _LAYER.match(name)
    if layer is None:
        return None
    prefix, inner = f"model.layers.{layer.group(1)}", layer.group(2)
    if inner == "self_attn.zoom_up.weight":  # q, k, v share it
        return f"projections.{prefix}.self_attn.input", False
    if inner == "mlp.zoom_up.weight":
        if variant.shares_input("mlp"):
            return f"projections.{prefix}.mlp.input", False
        return f"projections.{prefix}.mlp.up_proj", True
    if inner in _ORIGINAL_LAYER:
        ours, transposed = _ORIGINAL_LAYER[inner]
        return ours.format(prefix), transposed
    return None
