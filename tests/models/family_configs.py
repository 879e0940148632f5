"""Tiny configs of the families that are promised, each with its odd features on."""

from collections.abc import Callable
from typing import Any

from transformers import models as families

BASE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 6}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _make(name: str, **changes: Any) -> Callable[[], Any]:
    return lambda: getattr(families, name)(**(BASE | changes))


FAMILY_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _make("LlamaConfig", **HEADS, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama, llama3 rope": _make("LlamaConfig", **HEADS, rope_parameters=LLAMA3_ROPE),
    "mistral": _make("MistralConfig", **HEADS, sliding_window=4),
    "ministral": _make("MinistralConfig", **HEADS, **SLIDING),
    "qwen2": _make("Qwen2Config", tie_word_embeddings=True, use_sliding_window=True, **SLIDING),
    "qwen3": _make("Qwen3Config", **HEADS, attention_bias=True),
    "qwen3_moe": _make(
        "Qwen3MoeConfig",
        **HEADS,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        mlp_only_layers=[0],
        norm_topk_prob=True,
    ),
    "mixtral": _make("MixtralConfig", **HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=4),
    "olmo2": _make("Olmo2Config"),
    "olmo3": _make("Olmo3Config", **SLIDING),
    "gemma2": _make(
        "Gemma2Config",
        **HEADS,
        **SLIDING,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=6,
        tie_word_embeddings=True,
    ),
    "gemma3_text": _make(
        "Gemma3TextConfig",
        **HEADS,
        **SLIDING,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=6,
        tie_word_embeddings=True,
    ),
    "phi3": _make("Phi3Config", sliding_window=4, partial_rotary_factor=0.5),
    "phi": _make("PhiConfig", head_dim=8, partial_rotary_factor=0.5, embd_pdrop=0.1, resid_pdrop=0.1),
    "granite": _make(
        "GraniteConfig",
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.3,
        logits_scaling=2.0,
        tie_word_embeddings=True,
    ),
    "smollm3": _make("SmolLM3Config", no_rope_layers=[1, 0, 1], tie_word_embeddings=True),
    "starcoder2": _make(
        "Starcoder2Config",
        use_bias=True,
        sliding_window=4,
        tie_word_embeddings=True,
        embedding_dropout=0.1,
        residual_dropout=0.1,
        attention_dropout=0.1,
    ),
    "cohere": _make("CohereConfig", logit_scale=0.25, use_qk_norm=True, tie_word_embeddings=True),
    "cohere2": _make("Cohere2Config", **HEADS, **SLIDING, logit_scale=0.25, tie_word_embeddings=True),
    "glm4": _make("Glm4Config", head_dim=8, attention_bias=True, partial_rotary_factor=0.5),
    "gpt_oss": _make("GptOssConfig", **HEADS, **SLIDING, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": _make(
        "DeepseekV3Config",
        num_key_value_heads=4,
        moe_intermediate_size=20,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=12,
        kv_lora_rank=10,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=5,
    ),
    "falcon_h1": _make(
        "FalconH1Config",
        **HEADS,
        mamba_d_ssm=16,
        mamba_n_heads=4,
        mamba_d_head=4,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_chunk_size=8,
        attention_in_multiplier=0.7,
        ssm_in_multiplier=0.6,
        lm_head_multiplier=0.5,
        embedding_multiplier=2.0,
    ),
}
