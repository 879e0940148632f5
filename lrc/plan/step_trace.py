"""The step's memory, from a step of the pair model itself on fake tensors: they have sizes and lives, but no bytes.

A pair with only the first layers, one of each kind at least, runs forward and backward while every storage is followed
from birth to death. What each stretch of the step adds and frees is then laid out over the full depth
(`lrc/plan/timeline.py`). So the numbers are those of the code as it is, for every family, and not of a model of it.
"""

import copy
import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lrc.config import Checkpointing, ObjectiveConfig
from lrc.models.discovery import Architecture
from lrc.models.held_teacher import fill_store
from lrc.models.layer_store import LayerStore
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.stock import stock_model
from lrc.plan.live_bytes import LiveBytes
from lrc.plan.sizes import Sizes
from lrc.teacher_config import NATIVE, TeacherWeightsConfig

UNMASKED = "sdpa_without_mask"
"""Attention as the class runs it where rows are whole documents: causal by a flag; under fake tensors transformers
would make a mask, for it can't look at positions."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of the step, in bytes beyond those at its beginning."""

    peak: int
    end: int


@dataclass(frozen=True, kw_only=True)
class LayerStretches:
    """What one layer does to memory."""

    forward: Stretch
    backward: Stretch


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """One micro-batch's forward and backward, stretch by stretch; trained tensors have no gradient before."""

    before: Stretch
    """Embedding, masks, rotary tables."""
    layers: dict[int, LayerStretches]
    """By kind of layer, see `layer_kinds`."""
    head: Stretch
    """Last norm, head and losses, forward."""
    head_backward: Stretch
    after: Stretch
    """The embedding's backward."""


def layer_kinds(sizes: Sizes) -> list[int]:
    """Number the kinds of layers by shapes, stages and attention; the first layer is of kind 0."""
    types = getattr(sizes.config, "layer_types", None)
    kinds: dict[Any, int] = {}
    found = []
    for index, stages in enumerate(sizes.architecture.stages):
        prefix = sizes.layer(index)
        shapes = frozenset(
            (name.removeprefix(prefix), s) for name, s in sizes.teacher.items() if name.startswith(prefix)
        )
        key = (shapes, stages, types[index] if isinstance(types, list | tuple) else None)
        found.append(kinds.setdefault(key, len(kinds)))
    return found


def trace_step(
    sizes: Sizes,
    kinds: list[int],
    objective: ObjectiveConfig,
    *,
    batch: int,
    sequence: int,
    dtype: torch.dtype,
    checkpointing: Checkpointing,
    masked: bool,
    merge_shared_by: int = 1,
    teacher_weights: TeacherWeightsConfig = NATIVE,
) -> StepTrace:
    """Run one micro-batch's forward and backward on fake tensors.

    Args:
        sizes: Teacher and student.
        kinds: What `layer_kinds` found.
        objective: Losses.
        batch: Rows of the micro-batch.
        sequence: Positions of a row.
        dtype: Compute dtype.
        checkpointing: What the backward pass computes again.
        masked: Attention stays inside documents, by a mask.
        merge_shared_by: Micro-batches that share one merge; gradients of many go through it wherever any step's do.
        teacher_weights: How the matrices of the teacher's layers are held.

    Raises:
        Exception: A layer's way depends on values (routing in a loop); the caller says so.
    """
    depth = _depth(kinds)
    with FakeTensorMode(allow_non_fake_inputs=True):  # classes make small constants of their own
        teacher = _short_teacher(sizes, depth=depth, dtype=dtype, masked=masked)
        architecture = _shortened(sizes.architecture, depth)
        store = LayerStore(torch.device("cpu"))
        if teacher_weights.is_held:
            fill_store(store, teacher, architecture, teacher_weights)
        pair = PairModel(
            teacher,
            hidden_size=sizes.d_student,
            variant=sizes.variant,
            objective=objective,
            architecture=architecture,
        )
        if sizes.dense is not None:
            pair.enter(sizes.dense)
        pair.set_activation_checkpointing(checkpointing)
        pair.head.merge_shared_by = merge_shared_by
        for layer in pair.layers:
            layer.attention = nullcontext  # a plan is of any machine
        pair.train()
        ids = torch.zeros(batch, sequence, dtype=torch.long)
        valid = torch.ones(batch, sequence, dtype=torch.bool)
        positions = torch.arange(sequence)[None].expand(batch, -1).contiguous() if masked else None
        with LiveBytes([*pair.parameters(), *pair.buffers(), *store.pieces(), ids, valid]) as live:
            marks = _run(pair, live, (ids, valid, positions))
    return _stretches(marks, kinds[:depth])


def _depth(kinds: list[int]) -> int:
    """How many layers hold every kind, the first one's twice where it comes again: its input is the embedding."""
    again = kinds.index(kinds[0], 1) if kinds[0] in kinds[1:] else 0
    return 1 + max(again, *map(kinds.index, set(kinds)))


def _short_teacher(sizes: Sizes, *, depth: int, dtype: torch.dtype, masked: bool) -> nn.Module:
    config = copy.deepcopy(sizes.config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == sizes.architecture.num_layers:
            setattr(config, name, value[:depth])
    config.num_hidden_layers = depth
    teacher = stock_model(config, dtype=dtype)
    if not masked and teacher.config._attn_implementation == "sdpa":
        AttentionInterface.register(UNMASKED, sdpa_attention_forward)
        AttentionMaskInterface.register(UNMASKED, _mask_where_needed)
        config._attn_implementation = UNMASKED
        teacher = stock_model(config, dtype=dtype)
    frozen: nn.Module = teacher.eval().requires_grad_(False)
    return frozen


def _mask_where_needed(*args: Any, **kwargs: Any) -> Tensor | None:
    """A mask for windows shorter than the row, which no flag can express."""
    window, length = kwargs.get("local_size"), kwargs["kv_length"]
    return sdpa_mask(*args, **kwargs) if window is not None and window < length else None


def _shortened(architecture: Architecture, depth: int) -> Architecture:
    """The architecture of the first `depth` layers."""

    def is_kept(name: str) -> bool:
        prefix = f"{architecture.layers}."
        return not name.startswith(prefix) or int(name.removeprefix(prefix).partition(".")[0]) < depth

    return dataclasses.replace(
        architecture,
        num_layers=depth,
        stages=architecture.stages[:depth],
        projected={name: entry for name, entry in architecture.projected.items() if is_kept(name)},
        gains=tuple(filter(is_kept, architecture.gains)),
        inherited=tuple(filter(is_kept, architecture.inherited)),
    )


@dataclass(frozen=True, kw_only=True)
class _Marks:
    """(bytes now, peak since the mark before) at the borders of the stretches, in the order of time."""

    forward: list[tuple[int, int]]
    """Begin of each layer, begin of the last norm."""
    loss: tuple[int, int]
    backward: list[tuple[int, int]]
    """Gradient of the last norm's input there, then of each layer's input from the last layer to the first."""
    end: tuple[int, int]


def _run(pair: PairModel, live: LiveBytes, inputs: tuple[Tensor, Tensor, Tensor | None]) -> _Marks:
    forward: list[tuple[int, int]] = []
    backward: list[tuple[int, int]] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        forward.append(live.mark())
        arguments[0].register_hook(lambda _: backward.append(live.mark()))

    norm = pair.base.get_submodule(pair.architecture.norm.removeprefix(f"{pair.architecture.base}."))
    for module in (*pair.layers, norm):
        module.register_forward_pre_hook(note)
    ids, valid, positions = inputs
    counts = StepCounts(labels=ids.numel(), positions=ids.numel(), sequences=ids.shape[0])
    objective = pair(ids, ids, valid, counts, positions).objective
    loss = live.mark()
    objective.backward()
    return _Marks(forward=forward, loss=loss, backward=backward, end=live.mark())


def _stretches(marks: _Marks, kinds: list[int]) -> StepTrace:
    def between(begin: tuple[int, int], end: tuple[int, int]) -> Stretch:
        return Stretch(peak=end[1] - begin[0], end=end[0] - begin[0])

    backward = marks.backward[::-1]  # the gradient of layer i's input comes at position i
    layers = {}
    for index, kind in enumerate(kinds):  # of a kind's layers the last: the first one's input is the embedding
        layers[kind] = LayerStretches(
            forward=between(marks.forward[index], marks.forward[index + 1]),
            backward=between(backward[index + 1], backward[index]),
        )
    return StepTrace(
        before=Stretch(peak=marks.forward[0][1], end=marks.forward[0][0]),
        layers=layers,
        head=between(marks.forward[-1], marks.loss),
        head_backward=between(marks.loss, backward[-1]),
        after=between(backward[0], marks.end),
    )
