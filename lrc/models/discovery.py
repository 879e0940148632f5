"""Discovery: which tensors of an architecture are projected, found by building its config at two hidden sizes.

A matrix that moved reads the residual stream or writes to it, a vector that moved is a norm gain (or a writer's bias),
and what did not move is inherited. Of a linear layer the axis tells which: the input axis a reader's, the output axis a
writer's. Experts stacked in one tensor may be stored either way, so one forward of a tiny random model
(`models/trace.py`) tells it of them, and which readers share an input, which norm makes it and which writer answers. No
family has a list of module names.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lrc.clone.sites import ProjectedTensor, Role, Stage, Variant
from lrc.errors import ConfigError
from lrc.models.scales import ScaleLaw, Scales, check_layer_constants, measure_scales, scale_law
from lrc.models.stock import stock_model
from lrc.models.student import is_tied_config, resized_config
from lrc.models.tiny import LAYERS, random_model, tiny_config
from lrc.models.trace import Trace, find_role, last_norm, run_trace, trace_stages

_Signature = frozenset[tuple[str, int, int]]
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What discovery found. Tensor names are those of the stock model; module names in `stages` are per layer."""

    model_type: str
    hidden_size: int
    num_layers: int
    projected: dict[str, ProjectedTensor]
    gains: tuple[str, ...]
    inherited: tuple[str, ...]
    embedding: str
    """Tensor name of the embedding."""
    head: str
    """Tensor name of the head; equal to `embedding` nowhere, also if the two are tied."""
    is_tied: bool
    base: str
    """Module that runs embedding, layers and last norm (`model`)."""
    layers: str
    """Module list of the layers (`model.layers`)."""
    norm: str
    """Last norm (`model.norm`)."""
    scale_law: ScaleLaw
    """Constants of the embedding, the gains and the head, at any width."""
    stages: tuple[tuple[Stage, ...], ...]
    """Stages of each layer, in the order they run."""

    @property
    def scales(self) -> Scales:
        """Constants of the teacher itself."""
        return self.scale_law.at_width(self.hidden_size)

    def is_student_tied(self, variant: Variant) -> bool:
        """Whether a student's embedding and head are one tensor: the teacher's are, and they share a projection."""
        return self.is_tied and variant.tie_embedding_projection


def discover(config: Any) -> Architecture:
    """Find readers, writers, gains, inherited tensors and stages of a causal LM.

    Args:
        config: The teacher's transformers config.

    Raises:
        ConfigError: The architecture ties its head size or a constant of its layers to its hidden size, nothing moves
            with `hidden_size`, or a layer has a part that can't be told.
    """
    try:
        return _discover(config)
    except ConfigError:
        raise
    except Exception as error:  # any class may break in a way of its own; the text is shown to the user
        raise ConfigError(
            f"{config.model_type} can't be cloned: building or running it at another hidden size fails with "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _discover(config: Any) -> Architecture:
    d_teacher = getattr(config, "hidden_size", None)
    if d_teacher is None:
        raise ConfigError(f"{config.model_type} can't be cloned: its config has no hidden_size (a composite config?).")
    models = [_meta_model(config, size) for size in (d_teacher, 2 * d_teacher)]
    moved = _moved_axes(config, models[0], models[1])
    model = models[0]
    base, layers = base_module(model), layer_list(model)
    head = _tensor_name(model, model.get_output_embeddings(), "head")
    is_tied = head not in dict(model.named_parameters())
    gains = _gains(moved)
    seen = _look(config, model, moved, gains)
    projected = {
        name: ProjectedTensor(name=name, role=seen.roles[_NUMBERS.sub("#", name)], axis=axis)
        for name, (axis, _) in moved.items()
        if name not in gains
    }
    if is_tied:
        projected[head] = ProjectedTensor(name=head, role="reader", axis=1)
    num_layers = len(list(model.get_submodule(layers).children()))
    embedding = _tensor_name(model, model.get_input_embeddings(), "embedding")
    places = (embedding, head, f"{seen.norm}.", f"{layers}.")
    _check_places(config, _stored(model), [place.removesuffix("weight") for place in places])
    return Architecture(
        model_type=config.model_type,
        hidden_size=d_teacher,
        num_layers=num_layers,
        projected=projected,
        gains=gains,
        inherited=tuple(name for name in _stored(model) if name not in moved),
        embedding=embedding,
        head=head,
        is_tied=is_tied,
        base=base,
        layers=layers,
        norm=seen.norm,
        scale_law=seen.scale_law,
        stages=tuple(seen.stages[_signature(moved, f"{layers}.{index}.")] for index in range(num_layers)),
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the forward of a tiny random model told; layers go by their signature."""

    norm: str
    scale_law: ScaleLaw
    stages: dict[_Signature, tuple[Stage, ...]]
    roles: dict[str, Role]
    """Role of each projected tensor; numbers in names replaced, for the tiny model may have fewer layers."""


def _signature(moved: Mapping[str, tuple[int, int]], prefix: str) -> _Signature:
    """What a layer is made of: the names of its moved tensors and where they moved."""
    return frozenset(
        (name.removeprefix(prefix), axis, rank) for name, (axis, rank) in moved.items() if name.startswith(prefix)
    )


def _look(config: Any, full: PreTrainedModel, moved: Mapping[str, tuple[int, int]], gains: Collection[str]) -> _Seen:
    """Run a tiny random model of the config; one of full depth if a short one lacks a kind of layer."""
    layers = layer_list(full)
    wanted = {_signature(moved, f"{layers}.{index}.") for index in range(config.num_hidden_layers)}
    for num_layers in (LAYERS, config.num_hidden_layers):
        model = random_model(tiny_config(config, num_layers=num_layers))
        names = set(_stored(model))
        kept = {name: place for name, place in moved.items() if name in names}
        depth = range(model.config.num_hidden_layers)
        signatures = {index: _signature(kept, f"{layers}.{index}.") for index in depth}
        if wanted <= set(signatures.values()):
            break
    trace = run_trace(model, base_module(full))
    norm = last_norm(trace, layers, config)
    entries = [
        ProjectedTensor(name=name, role=find_role(model, trace, name, axis), axis=axis)
        for name, (axis, _) in kept.items()
        if name not in gains
    ]
    stages = trace_stages(trace, layers, entries)
    return _Seen(
        norm=norm,
        scale_law=_scale_law(model, trace, layers=layers, norm=norm),
        stages={signatures[index]: stages[index] for index in depth},
        roles={_NUMBERS.sub("#", entry.name): entry.role for entry in entries},
    )


def _scale_law(model: PreTrainedModel, trace: Trace, *, layers: str, norm: str) -> ScaleLaw:
    """Measure the constants of the traced model and of one twice as wide."""
    config = model.config
    wide = random_model(resized_config(config, 2 * config.hidden_size, tied=is_tied_config(config)))
    check_layer_constants(model, wide, layers=layers, kind=config.model_type)
    both = [
        measure_scales(one, seen, layers=layers, norm=norm)
        for one, seen in ((model, trace), (wide, run_trace(wide, base_module(wide))))
    ]
    return scale_law(both[0], both[1], width=config.hidden_size, kind=config.model_type)


def _gains(moved: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Moved vectors that stand alone: no matrix of their module moved."""
    owners = {name.rpartition(".")[0] for name, (_, rank) in moved.items() if rank > 1}
    return tuple(name for name, (_, rank) in moved.items() if rank == 1 and name.rpartition(".")[0] not in owners)


def _stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and the buffers that a checkpoint holds, a tied head left out."""
    stored = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}


def _meta_model(config: Any, hidden_size: int) -> PreTrainedModel:
    resized = resized_config(config, hidden_size, tied=is_tied_config(config))
    try:
        # as a saved student is read: what a config derives from its hidden size (Mamba's inner width) is derived anew
        resized = type(config).from_dict(resized.to_dict())
        with torch.device("meta"):
            model: PreTrainedModel = stock_model(resized)
    except Exception as error:  # a class may object in any way of its own; the text is shown to the user
        raise ConfigError(
            f"{config.model_type} can't be built at hidden size {hidden_size}: {type(error).__name__}: {error}"
        ) from error
    model.eval()
    return model


def _moved_axes(config: Any, narrow: PreTrainedModel, wide: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Axis and rank of every tensor that follows the hidden size."""
    narrow_tensors, wide_tensors = _stored(narrow), _stored(wide)
    moved = {}
    for name, tensor in narrow_tensors.items():
        if name not in wide_tensors:
            continue
        axes = [axis for axis, (a, b) in enumerate(zip(tensor.shape, wide_tensors[name].shape, strict=True)) if a != b]
        if len(axes) > 1:
            raise ConfigError(
                f"{config.model_type} can't be cloned: both axes of {name} {list(tensor.shape)} follow the hidden "
                "size, so its inner width is not free of it. Choose a teacher whose head size is separate."
            )
        if axes and tensor.shape[axes[0]] != narrow.config.hidden_size:
            raise ConfigError(
                f"{config.model_type} can't be cloned: axis {axes[0]} of {name} {list(tensor.shape)} follows the "
                f"hidden size but is not {narrow.config.hidden_size} wide, so it is not the residual stream."
            )
        if axes:
            moved[name] = (axes[0], tensor.dim())
    if set(wide_tensors) != set(narrow_tensors):
        raise ConfigError(f"{config.model_type} can't be cloned: which tensors it has depends on its hidden size.")
    if not moved:
        raise ConfigError(
            f"{config.model_type} can't be cloned: no tensor follows config.hidden_size (a composite config?)."
        )
    return moved


def _check_places(config: Any, names: Iterable[str], places: Sequence[str]) -> None:
    """Check that every tensor lies in embedding, head, last norm or a layer: nothing else is run in pairs."""
    stray = next((name for name in names if not name.startswith(tuple(places))), None)
    if stray is not None:
        raise ConfigError(
            f"{config.model_type} can't be cloned: {stray} belongs to neither its embedding, layers, last norm nor "
            "head, and a student has no place for it."
        )


def _tensor_name(model: PreTrainedModel, module: nn.Module | None, what: str) -> str:
    for name, candidate in model.named_modules():
        if candidate is module:
            return f"{name}.weight"
    raise ConfigError(f"{model.config.model_type} can't be cloned: {type(model).__name__} has no {what} of its own.")


def base_module(model: PreTrainedModel) -> str:
    """Name the module that runs embedding, layers and last norm (`model`)."""
    prefix, children = model.base_model_prefix, dict(model.named_children())
    if prefix in children:
        return prefix
    embedding = model.get_input_embeddings()  # Llama 4 has its composite's prefix
    return next((name for name, child in children.items() if embedding in child.modules()), prefix)


def layer_list(model: PreTrainedModel) -> str:
    """Name the module list of a stock model's layers (`model.layers`).

    Raises:
        ConfigError: There is none of the config's length.
    """
    base, num_layers = base_module(model), model.config.num_hidden_layers
    name: str
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and name.startswith(base):
            return name
    raise ConfigError(f"{type(model).__name__} has no list of {num_layers} layers below {base!r}.")
