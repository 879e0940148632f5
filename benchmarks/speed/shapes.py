"""The shapes that a step is timed at: widths of real teachers, depths that fit a small machine, random weights."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from lrc.clone.sites import Variant

AXES = ("tokens", "length", "layers", "vocabulary", "width")
"""What a sweep can double."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One teacher, its student, and the micro-batch."""

    name: str
    model_type: str
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocabulary: int
    d_student: int
    is_tied: bool
    """The teacher's embedding and head are one tensor."""
    tie_projection: bool
    """Embedding and head share one projection."""
    batch: int
    """Rows of a micro-batch."""
    length: int
    """Positions of a row."""

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch."""
        return self.batch * self.length

    @property
    def variant(self) -> Variant:
        """The published sharing, `all` everywhere."""
        return Variant(tie_embedding_projection=self.tie_projection)

    def config(self) -> Any:
        """Make the teacher's config."""
        kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[self.model_type]
        return kind(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=max(2048, self.length),
            tie_word_embeddings=self.is_tied,
            pad_token_id=None,
            bos_token_id=0,
            eos_token_id=1,
        )

    def grown(self, axis: str, factor: int) -> "Shape":
        """Return the shape with one of `AXES` times `factor`; `width` grows every width, heads by their number."""
        names = {
            "tokens": ("batch",),
            "length": ("length",),
            "layers": ("layers",),
            "vocabulary": ("vocabulary",),
            "width": ("hidden", "ffn", "heads", "kv_heads", "d_student"),
        }[axis]
        return replace(self, **{name: factor * getattr(self, name) for name in names})


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(  # SmolLM2-135M, what `lrc demo` clones
            name="demo",
            model_type="llama",
            hidden=576,
            ffn=1536,
            heads=9,
            kv_heads=3,
            head_dim=64,
            layers=30,
            vocabulary=49_152,
            d_student=288,
            is_tied=True,
            tie_projection=False,
            batch=8,
            length=256,
        ),
        Shape(  # widths of Llama-3.2-3B and LRC-1.5B
            name="gqa3b",
            model_type="llama",
            hidden=3072,
            ffn=8192,
            heads=24,
            kv_heads=8,
            head_dim=128,
            layers=2,
            vocabulary=128_256,
            d_student=1536,
            is_tied=True,
            tie_projection=True,
            batch=4,
            length=1024,
        ),
        Shape(  # widths of Qwen2.5-7B
            name="qwen7b",
            model_type="qwen2",
            hidden=3584,
            ffn=18_944,
            heads=28,
            kv_heads=4,
            head_dim=128,
            layers=2,
            vocabulary=152_064,
            d_student=1792,
            is_tied=False,
            tie_projection=False,
            batch=4,
            length=1024,
        ),
        Shape(  # seconds on one core: proves that the benchmark runs
            name="tiny",
            model_type="llama",
            hidden=64,
            ffn=128,
            heads=4,
            kv_heads=2,
            head_dim=16,
            layers=2,
            vocabulary=512,
            d_student=32,
            is_tied=True,
            tie_projection=False,
            batch=2,
            length=32,
        ),
    )
}


def random_teacher(shape: Shape, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Make the shape's teacher with the class's own random weights, frozen."""
    torch.manual_seed(0)
    with device:
        teacher: nn.Module = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
    return teacher.eval().requires_grad_(False)
