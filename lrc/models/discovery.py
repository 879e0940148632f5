"""Discovery: which tensors of an architecture are projected, found by building its config at two hidden sizes.

A matrix whose input axis moved is a reader, one whose output axis moved a writer, a vector that moved a norm gain (or
a writer's bias), and what did not move is inherited. A forward pass on the meta device then tells which readers share
an input, which norm makes it and which writer answers. No list of module names is kept for any family.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lrc.clone.sites import ProjectedTensor, Stage, StageKind
from lrc.errors import ConfigError
from lrc.models.student import resized_config


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
    stages: tuple[tuple[Stage, ...], ...]
    """Stages of each layer, in the order they run."""


def discover(config: Any) -> Architecture:
    """Find readers, writers, gains, inherited tensors and stages of a causal LM.

    Args:
        config: The teacher's transformers config.

    Raises:
        ConfigError: The architecture ties its head size to its hidden size, nothing moves with `hidden_size`, or a
            layer has a part that can't be told.
    """
    d_teacher = getattr(config, "hidden_size", None)
    if d_teacher is None:
        raise ConfigError(f"{config.model_type} can't be cloned: its config has no hidden_size (a composite config?).")
    models = [_meta_model(config, size) for size in (d_teacher, 2 * d_teacher)]
    shapes = [{name: parameter.shape for name, parameter in model.named_parameters()} for model in models]
    moved = _moved_axes(config, shapes[0], shapes[1])
    model = models[0]
    owners = {name.rpartition(".")[0] for name, (axis, rank) in moved.items() if rank > 1}
    projected: dict[str, ProjectedTensor] = {}
    gains = []
    embedding = _tensor_name(model, model.get_input_embeddings())
    head = _tensor_name(model, model.get_output_embeddings())
    for name, (axis, rank) in moved.items():
        if rank == 1 and name.rpartition(".")[0] not in owners:
            gains.append(name)
            continue
        reads = axis == rank - 1 and rank > 1
        projected[name] = ProjectedTensor(name=name, role="reader" if reads else "writer", axis=axis)
    is_tied = head not in shapes[0]
    if is_tied:
        projected[head] = ProjectedTensor(name=head, role="reader", axis=1)
    base = model.base_model_prefix
    layers = layer_list(model)
    norm = _last_norm(gains, base, layers)
    return Architecture(
        model_type=config.model_type,
        hidden_size=d_teacher,
        num_layers=config.num_hidden_layers,
        projected=projected,
        gains=tuple(gains),
        inherited=tuple(name for name in shapes[0] if name not in moved),
        embedding=embedding,
        head=head,
        is_tied=is_tied,
        base=base,
        layers=layers,
        norm=norm,
        stages=_trace_stages(model, layers, projected, gains),
    )


def _meta_model(config: Any, hidden_size: int) -> PreTrainedModel:
    resized = resized_config(config, hidden_size, tied=bool(config.tie_word_embeddings))
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(resized, attn_implementation="sdpa")
    except Exception as error:  # a class may object in any way of its own; the text is shown to the user
        raise ConfigError(
            f"{config.model_type} can't be built at hidden size {hidden_size}: {type(error).__name__}: {error}"
        ) from error
    model.eval()
    return model


def _moved_axes(config: Any, narrow: dict[str, torch.Size], wide: dict[str, torch.Size]) -> dict[str, tuple[int, int]]:
    moved = {}
    for name, shape in narrow.items():
        axes = [axis for axis, (a, b) in enumerate(zip(shape, wide[name], strict=True)) if a != b]
        if len(axes) > 1:
            raise ConfigError(
                f"{config.model_type} can't be cloned: both axes of {name} {list(shape)} follow the hidden size, so "
                "its inner width is not free of it. Choose a teacher whose head size is separate."
            )
        if axes:
            moved[name] = (axes[0], len(shape))
    if not moved:
        raise ConfigError(
            f"{config.model_type} can't be cloned: no tensor follows config.hidden_size (a composite config?)."
        )
    return moved


def _tensor_name(model: PreTrainedModel, module: nn.Module) -> str:
    return next(f"{name}.weight" for name, candidate in model.named_modules() if candidate is module)


def layer_list(model: PreTrainedModel) -> str:
    """Name the module list of a stock model's layers (`model.layers`).

    Raises:
        ConfigError: There is none of the config's length.
    """
    base, num_layers = model.base_model_prefix, model.config.num_hidden_layers
    name: str
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and name.startswith(base):
            return name
    raise ConfigError(f"{type(model).__name__} has no list of {num_layers} layers below {base!r}.")


def _last_norm(gains: list[str], base: str, layers: str) -> str:
    outside = {name.rpartition(".")[0] for name in gains if not name.startswith(f"{layers}.")}
    if len(outside) != 1:
        raise ConfigError(f"One norm is expected between layers and head, found {sorted(outside)} below {base!r}.")
    return outside.pop()


@dataclass(frozen=True)
class _Call:
    module: str
    input: Tensor
    output: Tensor


def _trace_stages(
    model: PreTrainedModel, layers: str, projected: dict[str, ProjectedTensor], gains: list[str]
) -> tuple[tuple[Stage, ...], ...]:
    """Run the model once on the meta device and read the order of readers, writers and norms from who got what."""
    interesting = {entry.module for entry in projected.values()} | {name.rpartition(".")[0] for name in gains}
    calls: list[_Call] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, args, output: calls.append(_Call(name, args[0], output))

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if name.startswith(f"{layers}.") and name in interesting
    ]
    base = model.get_submodule(layers.rpartition(".")[0])
    try:
        with torch.no_grad():
            # a ready 4-D mask: making one from positions reads values, which the meta device has none of
            mask = torch.zeros(1, 1, 4, 4, device="meta")
            base(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"), attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    roles = {entry.module: entry.role for entry in projected.values() if not entry.name.endswith(".bias")}
    by_layer: dict[int, list[_Call]] = {}
    for call in calls:
        index, _, inner = call.module.removeprefix(f"{layers}.").partition(".")
        by_layer.setdefault(int(index), []).append(_Call(inner, call.input, call.output))
    num_layers = len(list(model.get_submodule(layers).children()))
    return tuple(tuple(_stages_of(by_layer.get(index, []), roles, f"{layers}.{index}.")) for index in range(num_layers))


def _stages_of(calls: list[_Call], roles: Mapping[str, str], prefix: str) -> Iterator[Stage]:
    norms = [call for call in calls if prefix + call.module not in roles]
    groups: list[list[_Call]] = []
    writers: list[list[_Call]] = []
    for call in calls:
        role = roles.get(prefix + call.module)
        if role == "reader":
            if not groups or groups[-1][0].input is not call.input:
                groups.append([])
                writers.append([])
            groups[-1].append(call)
        elif role == "writer":
            if not groups:
                raise ConfigError(f"{prefix}{call.module} writes to the residual stream before anything was read.")
            writers[-1].append(call)
    if not groups or any(not group for group in writers):
        raise ConfigError(f"{prefix}: each group of readers must be answered by a writer; this layer's are not.")
    for readers, answers in zip(groups, writers, strict=True):
        before = [norm.module for norm in norms if norm.output is readers[0].input]
        after = [norm.module for norm in norms if any(norm.input is answer.output for answer in answers)]
        yield Stage(
            kind=_kind(readers[0].module),
            readers=tuple(call.module for call in readers),
            writers=tuple(call.module for call in answers),
            norm=before[0] if before else None,
            post_norm=after[0] if after else None,
        )


def _kind(module: str) -> StageKind:
    return "attn" if "attn" in module or "attention" in module else "mlp"
