"""Tiny composite configs: a decoder, a small image encoder, and what the decoder's config does not say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMultimodalLM
from transformers import models as families

from tests.models.tiny_configs import SIZES

TEXT: dict[str, Any] = SIZES | {"head_dim": 8}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
IMAGE_TOKEN = {"image_token_id": 47}
GEMMA4 = {
    "global_head_dim": 12,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": 48,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
}
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}


def _rope(*section: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}}


def _make(name: str, text: dict[str, Any], vision: dict[str, Any], **changes: Any) -> Callable[[], Any]:
    return lambda: getattr(families, name)(text_config=TEXT | text, vision_config=vision, **IMAGE_TOKEN, **changes)


COMPOSITES: dict[str, tuple[Callable[[], Any], str]] = {
    "gemma3": (
        _make("Gemma3Config", {"query_pre_attn_scalar": 8, "sliding_window": 4}, VISION, mm_tokens_per_image=4),
        "Gemma3ForCausalLM",
    ),
    "gemma4": (
        _make("Gemma4Config", GEMMA4, VISION | {"num_key_value_heads": 2, "head_dim": 8}, audio_config=None),
        "Gemma4ForCausalLM",
    ),
    "llava": (
        _make("LlavaConfig", {"model_type": "llama"}, VISION | {"model_type": "clip_vision_model"}),
        "LlamaForCausalLM",
    ),
    "mistral3": (
        _make("Mistral3Config", {"model_type": "mistral"}, VISION | {"model_type": "pixtral"}),
        "MistralForCausalLM",
    ),
    "paligemma": (
        _make("PaliGemmaConfig", {"model_type": "gemma"}, VISION | {"model_type": "siglip_vision_model"}),
        "GemmaForCausalLM",
    ),
    "idefics3": (_make("Idefics3Config", {"model_type": "llama"}, VISION), "LlamaForCausalLM"),
    "internvl": (
        _make("InternVLConfig", {"model_type": "qwen2"}, VISION | {"image_size": [28, 28], "patch_size": [14, 14]}),
        "Qwen2ForCausalLM",
    ),
    "qwen2_vl": (
        _make("Qwen2VLConfig", _rope(1, 1, 2), {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32}),
        "Qwen2ForCausalLM",
    ),
    "qwen2_5_vl": (_make("Qwen2_5_VLConfig", _rope(1, 1, 2), QWEN_VISION), "Qwen2ForCausalLM"),
    "qwen3_vl": (
        _make("Qwen3VLConfig", _rope(2, 1, 1), QWEN_VISION | {"deepstack_visual_indexes": [0]}),
        "Qwen3ForCausalLM",
    ),
    "qwen3_vl_moe": (
        _make(
            "Qwen3VLMoeConfig",
            _rope(2, 1, 1) | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
            QWEN_VISION | {"deepstack_visual_indexes": [0]},
        ),
        "Qwen3MoeForCausalLM",
    ),
    "qwen3_5": (_make("Qwen3_5Config", LINEAR, QWEN_VISION), "Qwen3_5ForCausalLM"),
}
"""Composite -> how its config is made, and the class of its text tower."""


def random_composite(name: str, **changes: Any) -> Any:
    """Build a composite with random weights; norms and biases differ from their start values too."""
    torch.manual_seed(0)
    config = COMPOSITES[name][0]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_with_own_head(folder: Path) -> Any:
    """Save a composite whose files hold a head, while its config leaves tying to a default that says tied."""
    whole = random_composite("mistral3", tie_word_embeddings=False)  # as Mistral Small 3.1
    whole.save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())
    del stored["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(stored))
    return whole
