"""The student: a stock transformers model of the teacher's class, made from the teacher's config with another width."""

import copy
from collections.abc import Callable
from typing import Any

import accelerate
import torch
from torch import Tensor, nn

from lrc.errors import ConfigError
from lrc.models.stock import forget_quantisation, stock_model


def head_size(config: Any) -> int | None:
    """Return the width of one attention head, explicit or hidden size / heads; None for a model without attention."""
    # Gemma 4's config won't tell a size that differs between its layers, but has it stored
    explicit = config.to_dict().get("head_dim") or getattr(config, "head_dim", None)
    if explicit:
        return int(explicit)
    heads = getattr(config, "num_attention_heads", None)
    return int(config.hidden_size // heads) if heads else None


def is_tied_config(config: Any) -> bool:
    """Whether a config says that embedding and head are one tensor; a family that does not say has two."""
    return bool(getattr(config, "tie_word_embeddings", False))


def resized_config(config: Any, hidden_size: int, *, tied: bool) -> Any:
    """Copy a config with another hidden size; head size explicit, everything else the teacher's.

    Args:
        config: The teacher's transformers config.
        hidden_size: The copy's hidden size.
        tied: Whether the copy's embedding and head are one tensor.
    """
    resized = copy.deepcopy(config)
    forget_quantisation(resized)
    if not config.to_dict().get("head_dim") and (size := head_size(config)) is not None:
        resized.head_dim = size
    resized.hidden_size = hidden_size
    resized.tie_word_embeddings = tied
    return resized


def student_config(teacher_config: Any, hidden_size: int, *, tied: bool) -> Any:
    """Make the student's config and check that the class takes it.

    Raises:
        ConfigError: `hidden_size` is above the teacher's, or the class can't be built with it; names the nearest
            sizes that work.
    """
    d_teacher = teacher_config.hidden_size
    if hidden_size > d_teacher:
        raise ConfigError(
            f"student.hidden_size must be at or below the teacher's {d_teacher}, found {hidden_size}. Choose a smaller "
            "one."
        )
    config = resized_config(teacher_config, hidden_size, tied=tied)
    problem = _class_problem(config)
    if problem is None:
        return config
    good = _nearest_good_sizes(teacher_config, hidden_size, tied=tied)
    advice = f"The nearest sizes that work: {', '.join(map(str, good))}." if good else "No size near it works."
    raise ConfigError(f"student.hidden_size = {hidden_size} does not fit {config.model_type}: {problem} {advice}")


def _class_problem(config: Any) -> str | None:
    try:
        config.validate()
        with torch.device("meta"):
            stock_model(_short(config))
    except Exception as error:  # noqa: BLE001  any class may object in its own way; the text is shown to the user
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _short(config: Any) -> Any:
    short = copy.deepcopy(config)
    short.num_hidden_layers = 1
    if isinstance(vars(short).get("layer_types"), list):
        short.layer_types = short.layer_types[:1]
    return short


def _nearest_good_sizes(teacher_config: Any, hidden_size: int, *, tied: bool) -> list[int]:
    found: list[int] = []
    for distance in range(1, 129):
        for size in (hidden_size - distance, hidden_size + distance):
            if 0 < size < teacher_config.hidden_size and len(found) < 2:
                candidate = resized_config(teacher_config, size, tied=tied)
                if _class_problem(candidate) is None:
                    found.append(size)
        if len(found) >= 2:
            break
    return sorted(found)


def change_buffers(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Put something made of each buffer in its place (moved, cast); parameters stay, on the meta device."""
    for module in model.modules():
        module._buffers.update({key: change(value) for key, value in module._buffers.items() if value is not None})


def empty_student(config: Any) -> nn.Module:
    """Build the stock model without weights: parameters on the meta device, buffers real."""
    with accelerate.init_empty_weights(include_buffers=False):
        model: nn.Module = stock_model(config)
    return model.eval()
