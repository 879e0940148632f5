"""The trace: one forward of a tiny random model that tells what shapes can't.

Who got which tensor is read from values: two activations are the same if one is a constant times the other, so a view,
a cast or a family's multiplier between a norm and its readers hides nothing. A tensor of a module that both reads and
writes (stacked experts) is probed: a change at one hidden index shows in that output channel alone if it writes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lrc.clone.sites import ProjectedTensor, Role, Stage, StageKind, site_of
from lrc.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: its first tensor in and out, and how to repeat it."""

    module: str
    input: Tensor
    output: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one forward showed."""

    ids: Tensor
    """`[batch, seq]`."""
    calls: list[Call]
    """Calls below the base model, in the order they ended."""
    last_hidden: Tensor
    """What the head gets, `[batch, seq, d]`."""
    logits: Tensor


def run_trace(model: PreTrainedModel, base: str) -> Trace:
    """Run a model once on random ids and keep every module's calls below `base`.

    Raises:
        ConfigError: The model's forward fails.
    """
    calls: list[Call] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            given, made = first_tensor((*args, *keywords.values())), first_tensor(output)
            if made is not None:  # token ids are no activation; an embedding's call stands for its output
                calls.append(Call(name, made if given is None else given, made, args, keywords))

        return hook

    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name.startswith(base)
    ]
    ids = torch.randint(0, model.config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    except Exception as error:  # any class may fail in a way of its own; the text is shown to the user
        raise ConfigError(
            f"{model.config.model_type} can't be run as a causal LM on token ids alone, made small and at hidden size "
            f"{model.config.hidden_size}: {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    (last_hidden,) = [call.output for call in calls if call.module == base][-1:]
    return Trace(ids=ids, calls=calls, last_hidden=last_hidden, logits=logits)


def first_tensor(value: Any) -> Tensor | None:
    """Find the first floating tensor in a module's arguments or output."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((found for found in map(first_tensor, value) if found is not None), None)
    return None


def multiple(source: Tensor, target: Tensor) -> float | None:
    """Return the constant c with `target = c * source` (in any shape), or None if there is none."""
    if source.numel() != target.numel():
        return None
    a, b = source.flatten().double(), target.flatten().double()
    factor = float(a @ b / (a @ a).clamp_min(1e-300))
    size = float(b.abs().max())
    if factor == 0 or size == 0 or float((b - factor * a).abs().max()) > 1e-4 * size:
        return None
    return 1.0 if abs(factor - 1) < 1e-5 else factor


def last_norm(trace: Trace, layers: str, config: Any) -> str:
    """Name the module that makes the head's input.

    Raises:
        ConfigError: No module does, or it lies inside a layer.
    """
    base = layers.rpartition(".")[0]
    for call in reversed(trace.calls):
        outside = call.module != base and not call.module.startswith(f"{layers}.")
        if outside and call.output.shape == trace.last_hidden.shape and torch.equal(call.output, trace.last_hidden):
            return call.module
    raise ConfigError(f"{config.model_type} can't be cloned: no norm is found between its layers and its head.")


def find_role(model: PreTrainedModel, trace: Trace, name: str, axis: int) -> Role:
    """Tell whether a tensor reads or writes the stream; plain linear weights by their axis, others by a probe.

    Args:
        model: The model that was traced.
        trace: Its calls.
        name: A tensor of it.
        axis: The axis that is as wide as the stream.
    """
    tensor, module = model.state_dict(keep_vars=True)[name], name.rpartition(".")[0]
    owner = model.get_submodule(module)
    call = next((call for call in trace.calls if call.module == module), None)
    if isinstance(owner, (nn.Linear, nn.Embedding)) or call is None:
        return "reader" if axis == tensor.dim() - 1 and tensor.dim() > 1 else "writer"
    kept = tensor.clone()
    with torch.no_grad():
        tensor.select(axis, 0).add_(1.0)
        changed = first_tensor(owner(*call.arguments, **call.keywords))
        tensor.copy_(kept)
    assert changed is not None
    moved = (changed - call.output).abs().flatten(0, -2).amax(0) > 0
    width = tensor.shape[axis]
    return "writer" if moved.shape[0] == width and bool(moved[0]) and not bool(moved[1:].any()) else "reader"


def trace_stages(trace: Trace, layers: str, projected: Iterable[ProjectedTensor]) -> dict[int, tuple[Stage, ...]]:
    """Read each layer's stages from the calls; `projected` has the roles.

    Raises:
        ConfigError: A layer writes before it reads, or reads without writing.
    """
    sites: dict[str, dict[str, Role]] = {}
    for entry in projected:
        if not entry.name.endswith("bias"):
            sites.setdefault(entry.module, {})[site_of(entry.name)] = entry.role
    by_layer: dict[int, list[Call]] = {}
    after: dict[int, Tensor] = {}
    for call in trace.calls:
        if call.module.startswith(f"{layers}."):
            index, _, inner = call.module.removeprefix(f"{layers}.").partition(".")
            if inner:
                by_layer.setdefault(int(index), []).append(call)
            elif index.isdigit():
                after[int(index)] = call.output
    return {
        index: tuple(_stages_of(calls, sites, f"{layers}.{index}.", after[index])) for index, calls in by_layer.items()
    }


@dataclass
class _Group:
    """Readers of one input and the writers that answered them."""

    readers: list[tuple[str, Call]]
    writers: list[tuple[str, Call]]


def _stages_of(calls: list[Call], sites: dict[str, dict[str, Role]], prefix: str, after: Tensor) -> Iterator[Stage]:
    groups: list[_Group] = []
    for call in calls:
        roles = sites.get(call.module, {})
        for site, role in roles.items():
            inner = site.removeprefix(prefix)
            if role == "reader":
                same = groups and multiple(groups[-1].readers[0][1].input, call.input) is not None
                if not same or groups[-1].writers:
                    groups.append(_Group([], []))
                groups[-1].readers.append((inner, call))
        for site, role in roles.items():
            if role == "writer":
                if not groups:
                    raise ConfigError(f"{site} writes to the residual stream before anything was read.")
                groups[-1].writers.append((site.removeprefix(prefix), call))
    found = [_stage(group, calls, sites, prefix) for group in _answered(groups, prefix)]
    points = [stream.view_as(after) for _, stream, _ in found] + [after]  # experts get all positions in one row
    for position, (stage, _, written) in enumerate(found):
        stream = points[position]
        beside = [points[other] for other in (position - 1, position + 1) if other >= 0]
        is_parallel = any(multiple(stream, other) == 1 for other in beside)
        joined = None if is_parallel or written is None else multiple(written, points[position + 1] - stream)
        yield replace(stage, residual=joined, block=_block(stage, calls, found[position][1], after, prefix))


def _block(stage: Stage, calls: list[Call], read: Tensor, after: Tensor, prefix: str) -> str | None:
    """Name the module that gets what a stage without a norm reads, if its readers get it in another shape."""
    if stage.norm is not None or read.shape == after.shape:
        return None
    same = (call for call in calls if call.input.shape == after.shape and multiple(read, call.input) == 1)
    return next((call.module.removeprefix(prefix) for call in same), None)


def _answered(groups: list[_Group], prefix: str) -> list[_Group]:
    """Give readers that nothing answered (a gate read late) to the earlier group of their input."""
    kept: list[_Group] = []
    for group in groups:
        if group.writers:
            kept.append(group)
            continue
        source = group.readers[0][1].input
        home = next((other for other in kept if multiple(other.readers[0][1].input, source) is not None), None)
        if home is None:
            raise ConfigError(_unanswered(group, groups, prefix))
        home.readers += group.readers
    if not kept:
        raise ConfigError(f"{prefix}: each group of readers must be answered by a writer; this layer has none.")
    return kept


def _unanswered(group: _Group, groups: list[_Group], prefix: str) -> str:
    """Say why readers have no writer: mostly since their block hands its experts rows that it made of the stream."""
    source = group.readers[0][1].input
    made = next((call for other in groups for _, call in other.readers if call.input.numel() != source.numel()), None)
    if made is None:
        return f"{prefix}{group.readers[0][0]} reads the residual stream, but no writer answers it."
    return (
        f"{made.module} reads {made.input.numel() // made.input.shape[-1]} rows that its block makes of "
        f"{source.numel() // source.shape[-1]} positions of the residual stream (chosen or weighted for experts), not "
        "the stream itself, so it can't be told what answers what."
    )


def _stage(
    group: _Group, calls: list[Call], sites: dict[str, dict[str, Role]], prefix: str
) -> tuple[Stage, Tensor, Tensor | None]:
    """The stage, the stream that it reads and what its only writer (or the post-norm) adds."""
    norms = [call for call in calls if call.module not in sites and multiple(call.input, call.output) is None]
    read = group.readers[0][1].input
    before = [norm for norm in norms if multiple(norm.output, read) is not None]
    after = [
        norm
        for norm in norms
        if norm not in before and any(multiple(call.output, norm.input) is not None for _, call in group.writers)
    ]
    made = [call.output for call in (after[:1] or [call for _, call in group.writers])]
    stage = Stage(
        kind=_kind(group.readers[0][0]),
        readers=tuple(site for site, _ in group.readers),
        writers=tuple(site for site, _ in group.writers),
        norm=before[0].module.removeprefix(prefix) if before else None,
        post_norm=after[0].module.removeprefix(prefix) if after else None,
        bare=tuple(
            (site, call.module.removeprefix(prefix))
            for site, call in (*group.readers, *group.writers)
            if prefix + site != call.module
        ),
    )
    stream = before[0].input if before else read
    return stage, stream, made[0].view_as(stream) if len(made) == 1 else None


def _kind(module: str) -> StageKind:
    return "attn" if "attn" in module or "attention" in module else "mlp"
