"""The constants of an architecture that tensor shapes can't tell, measured on tiny random models of two widths.

Embedding multipliers (Gemma's root of the hidden size, Granite's constant), logit multipliers (Granite, Cohere, Falcon
H1) and gains that are stored as 1 + w (Gemma) are read from what a forward does, not from a list of families.
Constants inside the layers are the teacher's in a student too, so none may follow the width.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lrc.errors import ConfigError
from lrc.models.facts import logit_softcap
from lrc.models.trace import Trace, first_tensor, multiple


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Constants of one model; those of another width may differ in the embedding's alone (`at_width`)."""

    embedding: float
    """Factor between an embedding row and what enters the residual stream."""
    beside_embedding: float
    """The part of it that the model applies outside its embedding module."""
    logits: float
    """Logits are this times `last hidden state x head + bias` (before a soft-cap)."""
    unit_gain: float
    """Stored value of a norm gain that multiplies by one: 1, or 0 where gains are stored as 1 + w."""


@dataclass(frozen=True, kw_only=True)
class ScaleLaw:
    """Scales at one width, and which of them grow with the root of the width."""

    width: int
    scales: Scales
    embedding_grows: bool
    beside_grows: bool

    def at_width(self, hidden_size: int) -> Scales:
        """Return the scales of the same architecture at another hidden size."""
        root = (hidden_size / self.width) ** 0.5
        return Scales(
            embedding=self.scales.embedding * (root if self.embedding_grows else 1.0),
            beside_embedding=self.scales.beside_embedding * (root if self.beside_grows else 1.0),
            logits=self.scales.logits,
            unit_gain=self.scales.unit_gain,
        )


def measure_scales(model: PreTrainedModel, trace: Trace, *, layers: str, norm: str) -> Scales:
    """Measure the constants of a traced model.

    Args:
        model: The model that was traced.
        trace: Its calls.
        layers: Module list of the layers.
        norm: Last norm.

    Raises:
        ConfigError: Something that is no constant lies between embedding and first layer or between last norm and
            logits.
    """
    kind = model.config.model_type
    embedding: Any = model.get_input_embeddings()
    entered = next(call for call in trace.calls if call.module == f"{layers}.0").input
    made = next(call for call in trace.calls if model.get_submodule(call.module) is embedding).output
    total, beside = multiple(embedding.weight[trace.ids], entered), multiple(made, entered)
    if total is None or beside is None:
        raise ConfigError(
            f"{kind} can't be cloned: what enters its first layer is no constant multiple of the embedding's rows "
            "(learned positions, a norm or a projection between them)."
        )
    head: Any = model.get_output_embeddings()
    return Scales(
        embedding=total,
        beside_embedding=beside,
        logits=_logit_scale(trace, head, model.config),
        unit_gain=_unit_gain(model, trace, norm),
    )


def scale_law(narrow: Scales, wide: Scales, *, width: int, kind: str) -> ScaleLaw:
    """Compare the constants at `width` and at twice of it.

    Raises:
        ConfigError: One of them follows the hidden size in an unknown way, so a student would compute with another.
    """
    for what, a, b in (("logit scale", narrow.logits, wide.logits), ("unit gain", narrow.unit_gain, wide.unit_gain)):
        if abs(a - b) > 1e-4 * max(1.0, abs(a)):
            raise ConfigError(f"{kind} can't be cloned: its {what} follows the hidden size ({a:.4g} and {b:.4g}).")
    grows = []
    for a, b in ((narrow.embedding, wide.embedding), (narrow.beside_embedding, wide.beside_embedding)):
        ratio = b / a
        if min(abs(ratio - 1), abs(ratio - 2**0.5)) > 1e-3:
            raise ConfigError(
                f"{kind} can't be cloned: its embedding scale follows the hidden size by an unknown law ({a:.4g} at "
                f"width {width}, {b:.4g} at {2 * width})."
            )
        grows.append(abs(ratio - 1) > 1e-3)
    return ScaleLaw(width=width, scales=narrow, embedding_grows=grows[0], beside_grows=grows[1])


def check_layer_constants(narrow: nn.Module, wide: nn.Module, *, layers: str, kind: str) -> None:
    """Check that no number which a module of the layers keeps differs between two models of different width.

    What lies between a reader and its writer is inherited, and a stock student would multiply by another number there.

    Args:
        narrow: A model.
        wide: The same architecture, wider.
        layers: Module list of the layers.
        kind: Model type, for the message.

    Raises:
        ConfigError: One does (the factors on the latents of LongCat-Flash and dots3).
    """
    others = {name: vars(module) for name, module in wide.get_submodule(layers).named_modules()}
    for name, module in narrow.get_submodule(layers).named_modules():
        theirs = others.get(name, {})
        for attribute, value in vars(module).items():
            other = theirs.get(attribute)
            if isinstance(value, float) and isinstance(other, float) and not _is_same(value, other):
                raise ConfigError(
                    f"{kind} can't be cloned: {layers}.{name}.{attribute} follows the hidden size ({value:.4g} and "
                    f"{other:.4g} at twice the width), so inside its layers a student would compute with another "
                    "constant than the teacher. Choose a teacher of another family."
                )


def _is_same(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=1e-6) or (math.isnan(value) and math.isnan(other))


def _logit_scale(trace: Trace, head: nn.Linear, config: Any) -> float:
    cap, logits = logit_softcap(config), trace.logits.double()
    if cap is not None:
        logits = cap * torch.atanh(logits / cap)
    bias = None if head.bias is None else head.bias.double()
    found = multiple(nn.functional.linear(trace.last_hidden.double(), head.weight.double(), bias), logits)
    if found is None:
        raise ConfigError(
            f"{config.model_type} can't be cloned: its logits are no constant multiple of last hidden state x head "
            "(something lies between the two)."
        )
    return found


def _unit_gain(model: PreTrainedModel, trace: Trace, norm: str) -> float:
    """Run the last norm with gains of zero: nothing comes out unless they are stored as 1 + w."""
    module = model.get_submodule(norm)
    call = next(call for call in trace.calls if call.module == norm)
    tensors = dict(module.named_parameters())
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    if not kept:
        return 1.0
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.zero_()
        made = first_tensor(module(*call.arguments, **call.keywords))
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])
    assert made is not None
    return 0.0 if bool((made != 0).any()) else 1.0
