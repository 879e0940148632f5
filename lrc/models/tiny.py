"""A tiny random model of any architecture: the teacher's config with small widths, few layers, random weights.

Discovery runs it once to see who reads what, and the oracles prove a family on it, whatever the real teacher weighs.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from lrc.errors import ConfigError
from lrc.models.stock import stock_model
from lrc.models.student import is_tied_config, resized_config, student_config

HIDDEN = 32
VOCABULARY = 64
WIDTH = 64
LAYERS = 8
"""Enough for every pattern of layers seen so far (five sliding to one full, three dense before the experts)."""
WIDTH_FIELDS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "ffn_hidden_size",
    "ffn_dim",
)
TOKEN_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def tiny_config(config: Any, *, num_layers: int = LAYERS) -> Any:
    """Shrink hidden size, vocabulary, FFN widths and depth where the class allows; everything odd stays.

    Args:
        config: The teacher's transformers config; unchanged.
        num_layers: Layers to keep, from the front.
    """
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    hidden = min(config.hidden_size, heads * max(2, -(-HIDDEN // heads)))  # a narrower one must exist too
    tiny = resized_config(config, hidden, tied=is_tied_config(config))
    tiny.dtype = torch.float32
    changes = [_with_few_layers(tiny, num_layers), _with_small_vocabulary]
    changes += [_with_width(name) for name in WIDTH_FIELDS if isinstance(getattr(config, name, None), int)]
    for change in changes:
        candidate = copy.deepcopy(tiny)
        change(candidate)
        if candidate.to_dict() != tiny.to_dict() and _can_be_built(candidate):
            tiny = candidate
    return tiny


def random_model(config: Any, *, seed: int = 0) -> PreTrainedModel:
    """Build a model with random weights in float32; norms, biases and stored buffers differ from their start values.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = stock_model(config, dtype=torch.float32)
        with torch.no_grad():
            stored = set(model.state_dict())
            buffers = [buffer for name, buffer in model.named_buffers() if name in stored]
            for tensor in [*model.parameters(), *buffers]:
                if tensor.is_floating_point():
                    tensor.nan_to_num_().add_(0.1 * torch.randn_like(tensor))
    model.eval().requires_grad_(False)
    return model


def narrow_size(config: Any) -> int:
    """Return about half the width, and one that the class takes.

    Raises:
        ConfigError: There is none.
    """
    width = config.hidden_size
    for size in sorted(range(1, width), key=lambda size: abs(size - width // 2)):
        try:
            student_config(config, size, tied=is_tied_config(config))
        except ConfigError:
            continue
        return size
    raise ConfigError(f"{config.model_type} can't be built at any width below {width}.")


def _with_few_layers(config: Any, num_layers: int) -> Any:
    deep = config.num_hidden_layers

    def change(candidate: Any) -> None:
        if deep <= num_layers:
            return
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == deep:
                setattr(candidate, name, value[:num_layers])
        candidate.num_hidden_layers = num_layers

    return change


def _with_small_vocabulary(candidate: Any) -> None:
    candidate.vocab_size = min(candidate.vocab_size, VOCABULARY)
    for name in TOKEN_FIELDS:
        value = getattr(candidate, name, None)
        if isinstance(value, int) and value >= candidate.vocab_size:
            setattr(candidate, name, candidate.vocab_size - 1)
        elif isinstance(value, list):
            setattr(candidate, name, [min(token, candidate.vocab_size - 1) for token in value])


def _with_width(name: str) -> Any:
    def change(candidate: Any) -> None:
        setattr(candidate, name, min(getattr(candidate, name), WIDTH))

    return change


def _can_be_built(config: Any) -> bool:
    try:
        with torch.device("meta"):
            stock_model(config)
    except Exception:  # noqa: BLE001  any class may object in any way; the size then stays the teacher's
        return False
    return True
