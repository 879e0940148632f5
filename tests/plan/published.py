"""The published teachers' configs, and what METHOD's table of published runs says of their students."""

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, Qwen2Config

from lrc.clone.sites import Variant


def llama_3_2_3b() -> Any:
    return LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=True,
        max_position_embeddings=131072,
    )


def qwen2_5_3b() -> Any:
    return Qwen2Config(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )


def qwen2_5_7b() -> Any:
    return Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    )


def llama_2_7b() -> Any:
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
        tie_word_embeddings=False,
    )


def llama_3_70b() -> Any:
    return LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published run; parameters in billions with the published digits."""

    recipe: str
    config: Any
    d_student: int
    variant: Variant
    student: float | None
    trained: float | None
    hours: float | None
    """On 8 H800, whose peak is the H100's."""


def published_runs() -> tuple[Published, ...]:
    """List the four; of LRC-2.7B-B teacher, tokens and the size in its name are known."""
    tied, untied = Variant(tie_embedding_projection=True), Variant()
    return (
        Published(
            recipe="lrc_1.5b",
            config=llama_3_2_3b(),
            d_student=1536,
            variant=tied,
            student=1.61,
            trained=0.93,
            hours=34,
        ),
        Published(
            recipe="lrc_1.7b", config=qwen2_5_3b(), d_student=1200, variant=tied, student=1.81, trained=0.62, hours=80
        ),
        Published(
            recipe="lrc_4b", config=qwen2_5_7b(), d_student=2048, variant=untied, student=4.35, trained=1.45, hours=138
        ),
        Published(
            recipe="lrc_2.7b",
            config=llama_2_7b(),
            d_student=1664,
            variant=untied,
            student=None,
            trained=None,
            hours=None,
        ),
    )
