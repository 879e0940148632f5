"""TinyBERT-style terms: hidden states through one learned alignment, and attention maps (docs/methods.md).

After Jiao et al. 2020: the student's states after each layer, times a trained `[d_S, d_T]` that all layers share,
against the teacher's; each head's attention probabilities (theirs: the scores before the softmax) against those of the
teacher's head, since both models have the same.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lrc.errors import ConfigError
from lrc.models.discovery import Architecture
from lrc.models.tiny import random_model, tiny_config

HIDDEN, MAP = "hidden", "attention-map"
TERMS = (HIDDEN, MAP)
"""Names of the terms, measured in each layer."""
ALIGNMENT = "alignment.hidden"
"""Checkpoint name of the alignment."""
LENGTH = 6
"""Tokens of the check."""


def zero_alignment(d_student: int, d_teacher: int, device: torch.device) -> nn.Parameter:
    """Make the alignment, `[d_S, d_T]` float32, zero until it is drawn."""
    return nn.Parameter(torch.zeros(d_student, d_teacher, device=device))


def draw_alignment(d_student: int, d_teacher: int, generator: torch.Generator) -> Tensor:
    """Draw the alignment's start, `[d_S, d_T]`: uniform within `1 / sqrt(d_S)`, as torch starts a linear layer."""
    return (2 * torch.rand(d_student, d_teacher, generator=generator) - 1) / math.sqrt(d_student)


def attention_module(architecture: Architecture, layer: int) -> str | None:
    """Name the module of a layer that makes attention maps, relative to it; None for a layer without attention."""
    readers = (stage.readers[0] for stage in architecture.stages[layer] if stage.kind == "attn")
    return next((reader.rpartition(".")[0] for reader in readers), None)


def map_rows(output: Any) -> Tensor:
    """Return attention probabilities as one row of features a query, `[batch, seq, heads * keys]`.

    Those of query `t`, counted from 1, are times `sqrt(keys / t)`: a row's mean square is that over the `t` keys up to
    the query, which alone have a probability, however far the batch is padded. Scaled in float32 (float64 for float64
    maps), returned in the maps' dtype.
    """
    maps: Tensor = output[1]
    keys, exact = maps.shape[-1], torch.promote_types(maps.dtype, torch.float32)
    reach = torch.arange(1, keys + 1, device=maps.device, dtype=exact)[:, None]
    scaled = (maps * (keys / reach).sqrt()).to(maps.dtype)
    return scaled.transpose(1, 2).flatten(2)


@torch.no_grad()
def check_attention_maps(config: Any, architecture: Architecture) -> None:
    """Check on a tiny random model that every layer's attention hands its probabilities out.

    Raises:
        ConfigError: One does not, so the family has nothing to compare.
    """
    tiny: Any = random_model(tiny_config(config))
    tiny.set_attn_implementation("eager")
    layers = tiny.get_submodule(architecture.layers)
    found: list[Any] = []
    names = [attention_module(architecture, index) for index in range(len(layers))]
    for layer, name in zip(layers, names, strict=True):
        if name is not None:
            layer.get_submodule(name).register_forward_hook(lambda module, args, output: found.append(output))
    tiny(input_ids=torch.arange(LENGTH)[None] % tiny.config.vocab_size, use_cache=False)
    if len(found) != len(names) or not all(map(_has_map, found)):
        raise ConfigError(
            f"method = tiny_bert compares attention maps, but {config.model_type} has layers whose attention does not "
            f"hand them out, even when computed eagerly. Leave them out with objective.without=[{MAP}], or take "
            "method=only_kd."
        )


def _has_map(output: Any) -> bool:
    maps = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[2:] != (LENGTH, LENGTH):
        return False
    return bool(maps.min() >= 0) and bool(maps.sum(-1).max() < 1 + 1e-3)  # with a sink the sum is below 1
