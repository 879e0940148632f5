"""A held teacher: the matrices of its layers packed (int8, nf4) or in main memory, each formed where it is used.

The teacher's linear layers are swapped for `HeldLinear`, before the pair is made; nothing else about the model changes.
A matrix is formed for a product or a merge and dropped right after. The backward pass forms it again: what autograd
would keep for it is the whole matrix of every layer, all that was saved. Held matrices are nobody's parameters and no
buffers, so DDP and ZeRO-1 and 2 neither copy nor compare them. Strategies that share weights out (FSDP2, ZeRO-3) let
each layer take its packed pieces out of the store, as frozen parameters that are gathered with its others.

Embedding, head, norms, biases and matrices that are inherited stay as they are.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lrc.clone.merge import merge, projection_gradient
from lrc.errors import ConfigError
from lrc.models.discovery import Architecture
from lrc.models.layer_store import LayerStore
from lrc.models.stock import stock_model
from lrc.models.weight_formats import Packed, pack, packed_bytes, restore
from lrc.teacher_config import TeacherWeightsConfig


class HeldWeight:
    """A matrix of the teacher: its place in the store or, once its layer has taken it from there, its pieces."""

    def __init__(self, store: LayerStore, layer: int, name: str, dtype: torch.dtype) -> None:
        self.store = store
        self.layer = layer
        self.name = name
        self.dtype = dtype
        self._taken: tuple[Packed, nn.ParameterList] | None = None
        """What the matrix is, without pieces, and the pieces, whose tensors a strategy exchanges."""

    @property
    def device(self) -> torch.device:
        """Where it is formed."""
        return self.store.device if self._taken is None else self._taken[1][0].device

    def formed(self) -> Tensor:
        """Form the matrix, `[out, in]`; of a sharded one's pieces where they are gathered."""
        if self._taken is None:
            return restore(self.store.fetch(self.layer, self.name))
        packed, pieces = self._taken
        return restore(replace(packed, pieces=tuple(pieces)))

    def take(self) -> nn.ParameterList:
        """Take the pieces out of the store, as frozen parameters."""
        packed = self.store.take(self.layer, self.name)
        pieces = nn.ParameterList(nn.Parameter(piece, requires_grad=False) for piece in packed.pieces)
        self._taken = replace(packed, pieces=()), pieces
        return pieces


class HeldLinear(nn.Module):
    """A linear layer of the teacher whose matrix is held."""

    def __init__(self, held: HeldWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.held = held
        self.bias = bias
        self.pieces: nn.ParameterList | None = None
        """None: they are in the store."""

    def take_pieces(self) -> None:
        """Take the pieces of the matrix out of the store."""
        self.pieces = self.held.take()

    def forward(self, inputs: Tensor) -> Tensor:
        product: Tensor = _HeldProduct.apply(inputs, self.held, self.bias)  # type: ignore[no-untyped-call]
        return product


def held_weights(module: nn.Module) -> dict[str, HeldWeight]:
    """List a module's held matrices under the names that their parameters had."""
    return {f"{name}.weight": part.held for name, part in module.named_modules() if isinstance(part, HeldLinear)}


def take_pieces(module: nn.Module) -> None:
    """Make the packed pieces of a module's matrices its frozen parameters, for a strategy to share out and gather."""
    for part in module.modules():
        if isinstance(part, HeldLinear):
            part.take_pieces()


def merge_held(held: HeldWeight, projection: Tensor, axis: int) -> Tensor:
    """Merge a held matrix; as `clone/merge.py:merge`, with a gradient to the projection only."""
    merged: Tensor = _HeldMerge.apply(projection, held, axis)  # type: ignore[no-untyped-call]  # torch's own
    return merged


class _HeldMerge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projection: Tensor, held: HeldWeight, axis: int) -> Tensor:
        ctx.held, ctx.axis = held, axis
        return merge(held.formed(), projection, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return projection_gradient(ctx.held.formed(), gradient, ctx.axis), None, None


class _HeldProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, held: HeldWeight, bias: Tensor | None) -> Tensor:
        ctx.held = held
        return nn.functional.linear(inputs, held.formed(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.held.formed(), None, None


def held_matrices(model: nn.Module, architecture: Architecture) -> list[list[str]]:
    """List what a held teacher holds, layer by layer: the projected matrices.

    Raises:
        ConfigError: One is no plain linear layer's weight (stacked experts).
    """
    found: list[list[str]] = [[] for _ in range(architecture.num_layers)]
    prefix = f"{architecture.layers}."
    parameters = dict(model.named_parameters())
    for name in architecture.projected:
        if not name.startswith(prefix) or parameters[name].dim() < 2:
            continue
        owner, _, last = name.rpartition(".")
        if last != "weight" or type(model.get_submodule(owner)) is not nn.Linear:
            raise ConfigError(
                "teacher_weights must be left at format=native, offload=none for a teacher whose layers hold projected "
                f"tensors that are no linear layers' weights (stacked experts); found {name}. Use train.strategy=fsdp2 "
                "to share a large teacher out."
            )
        found[int(name.removeprefix(prefix).partition(".")[0])].append(name)
    return found


def held_matrices_of(config: Any, architecture: Architecture) -> list[list[str]]:
    """List what a held teacher of a config would hold, see `held_matrices`."""
    with torch.device("meta"):
        model = stock_model(config)
    return held_matrices(model, architecture)


def held_bytes(teacher: nn.Module, architecture: Architecture, settings: TeacherWeightsConfig) -> int:
    """Count the bytes that a loaded teacher will have once it is held."""
    names = {name for layer in held_matrices(teacher, architecture) for name in layer}
    return sum(
        packed_bytes(tuple(value.shape), value.dtype, settings.format) if name in names else value.nbytes
        for name, value in teacher.named_parameters()
    )


def hold_teacher(
    teacher: nn.Module, architecture: Architecture, settings: TeacherWeightsConfig, device: torch.device
) -> LayerStore:
    """Pack the matrices of a loaded teacher's layers, in place, and bring the rest of it to the device.

    Args:
        teacher: Stock causal LM in the compute dtype, best in main memory: each matrix goes to the device alone, is
            packed there, and stays or comes back.
        architecture: What discovery found in it.
        settings: The recipe's section. Without a GPU nothing is offloaded: the matrices are in main memory already.
        device: Where the teacher runs; the CPU too if a strategy is to share it out from main memory.

    Raises:
        ConfigError: The teacher holds stacked experts.
    """
    offloads = settings.offload == "cpu" and device.type != "cpu"
    store = LayerStore(device, bring=(lambda piece: piece.to(device, non_blocking=True)) if offloads else None)
    fill_store(store, teacher, architecture, settings)
    teacher.to(device)
    return store


def fill_store(
    store: LayerStore, teacher: nn.Module, architecture: Architecture, settings: TeacherWeightsConfig
) -> None:
    """Move the matrices of a teacher's layers into a store; the model's linear layers fetch them from there."""
    for index, names in enumerate(held_matrices(teacher, architecture)):
        for name in names:
            owner = name.rpartition(".")[0]
            linear = teacher.get_submodule(owner)
            assert isinstance(linear, nn.Linear)
            weight = linear.weight.detach()
            packed = pack(weight if settings.format == "native" else weight.to(store.device), settings.format)
            store.add(index, name, packed)
            teacher.set_submodule(owner, HeldLinear(HeldWeight(store, index, name, weight.dtype), linear.bias))
