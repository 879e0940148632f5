"""The text tower of a composite teacher (vision-language, audio-language): its decoder and head as a stock causal LM.

What is cloned of such a teacher is what it does on text alone. The student is a plain causal LM of the tower's class.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfFileSystem
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING

from lrc.errors import CheckpointError, ConfigError
from lrc.models.discovery import base_module
from lrc.models.folder import WEIGHTS_INDEX, ModelTensors, has_weights
from lrc.models.stock import QUANTISED
from lrc.models.student import empty_student, is_tied_config

# On text alone the three axes of their rotary positions are equal, which is the plain rotation:
# transformers Qwen2VLModel.get_rope_index and apply_multimodal_rotary_pos_emb, Qwen3VLTextRotaryEmbedding.
# Qwen3VLMoeTextTopKRouter always normalises the weights of the chosen experts.
PLAIN_CLASS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl_text": ("qwen2", {}),
    "qwen2_5_vl_text": ("qwen2", {}),
    "qwen3_vl_text": ("qwen3", {}),
    "qwen3_vl_moe_text": ("qwen3_moe", {"norm_topk_prob": True}),
}
"""Towers without a causal LM class of their own -> the family that computes the same on text, and what it is told."""
CHECKED_TOKENS = 16
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of tower and whole model as a share of the largest logit; measured 0 where the classes agree."""


def is_composite(config: Any) -> bool:
    """Whether a config is one of several towers, one of them for text, that transformers can load as a whole."""
    return "text_config" in config.sub_configs and type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING


def tower_config(config: Any, source: str) -> Any:
    """Return the config of a composite's text tower as a stock causal LM's.

    Args:
        config: The whole model's config; not changed.
        source: The model's folder or hub id; its files tell whether the head is a tensor of its own.

    Raises:
        ConfigError: transformers has no causal LM class for the tower.
    """
    tower = _plain(copy.deepcopy(config.text_config))
    if type(tower) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"{config.model_type} can't be cloned: its text tower is of the type {tower.model_type}, for which "
            "transformers has no causal LM class, so there is no stock student. Take a teacher whose tower has one "
            "(gemma3, llava, mistral3, qwen3_vl and others)."
        )
    tied = is_tied_config(config if hasattr(config, "tie_word_embeddings") else tower)
    # a head that the files hold is not tied, whatever a default says (Mistral Small 3.1)
    tower.tie_word_embeddings = tied and not holds_a_head(source)
    if hasattr(config, QUANTISED):  # of the whole's weights, and so of the tower's
        setattr(tower, QUANTISED, copy.deepcopy(getattr(config, QUANTISED)))
    causal_lm: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(tower)]
    tower.architectures = [causal_lm.__name__]
    return tower


def _plain(tower: Any) -> Any:
    if tower.model_type not in PLAIN_CLASS:
        return tower
    family, told = PLAIN_CLASS[tower.model_type]
    fields = tower.to_dict() | told
    del fields["model_type"]
    rope = fields["rope_parameters"]
    fields["rope_parameters"] = {key: value for key, value in rope.items() if not key.startswith("mrope")}
    return AutoConfig.for_model(family, **fields)


def holds_a_head(source: str) -> bool | None:
    """Whether the weights of a folder or hub id hold a head beside the embedding; None where that can't be seen.

    Of a hub id only the index of the weights is read: no weights are fetched.
    """
    folder = Path(source)
    if not folder.is_dir():
        names = _names_on_the_hub(source)
    else:
        names = ModelTensors(folder).names() if has_weights(folder) else None
    return None if names is None else any(name.endswith("lm_head.weight") for name in names)


def _names_on_the_hub(source: str) -> list[str] | None:
    """List the tensors in a hub id's index, which is not kept: in the cache it would promise its files."""
    try:
        return list(json.loads(HfFileSystem().read_text(f"{source}/{WEIGHTS_INDEX}"))["weight_map"])
    except Exception:  # noqa: BLE001  hub errors have no common base, and a model in one file has no index
        return None


def cut_tower(whole: PreTrainedModel, config: Any) -> PreTrainedModel:
    """Make the causal LM of a loaded composite's decoder and head; the weights are shared, not copied.

    Args:
        whole: The composite, in evaluation mode.
        config: What `tower_config` gave.

    Raises:
        ConfigError: The decoder's tensors are not those of the causal LM's class, or the two compute different logits
            on text; a student would be a clone of something else.
        CheckpointError: The whole model can't be run on text alone.
    """
    kind = whole.config.model_type
    config = copy.deepcopy(config)
    config.dtype = whole.dtype  # buffers that are not stored are made in it
    tower: Any = empty_student(config)
    head = next(name for name, module in tower.named_modules() if module is tower.get_output_embeddings())
    decoder: Any = whole.get_decoder()
    if type(decoder) is type(tower):  # the whole holds a causal LM (Llama 4), not its inside
        decoder = decoder.get_submodule(base_module(decoder))
    parts = {base_module(tower): decoder, head: whole.get_output_embeddings()}
    weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    try:
        tower.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ConfigError(
            f"{kind} can't be cloned: its decoder has other tensors than {type(tower).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    if tower.config.tie_word_embeddings:
        tower.tie_weights()
    tower.generation_config = whole.generation_config
    off = _difference(whole, tower)
    if off > TOLERANCE[whole.dtype]:
        raise ConfigError(
            f"{kind} can't be cloned: on text alone its logits are not those of its text tower as "
            f"{type(tower).__name__} (they differ by {off:.0e} of the largest)."
        )
    return tower  # type: ignore[no-any-return]


@torch.no_grad()
def _difference(whole: Any, tower: Any) -> float:
    """Largest difference of two models' logits on random tokens, as a share of the largest."""
    named = (value for name, value in whole.config.to_dict().items() if name.endswith(("token_id", "token_index")))
    special = {token for value in named for token in (value if isinstance(value, list) else [value])}
    size = min(tower.config.vocab_size, whole.get_input_embeddings().num_embeddings)
    drawn = torch.randint(0, size, (4 * CHECKED_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([[token for token in drawn if token not in special][:CHECKED_TOKENS]])
    try:
        expected = whole(input_ids=ids, use_cache=False).logits
    except Exception as error:  # any class may fail in a way of its own; the text is shown to the user
        raise CheckpointError(
            f"{whole.config.model_type} can't be run on text alone: {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    found = tower(input_ids=ids, use_cache=False).logits
    return float((found - expected).abs().max() / expected.abs().max())
