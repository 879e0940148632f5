"""FSDP2: teacher and trained tensors of each pair layer are sharded together, gathered for its forward and backward.

A `PairLayer` is the unit: its merge happens inside its forward, on gathered weights, and recomputation too. With
`train.merge: step` it happens once a step, part after part, and merged weights and their gradients are whole on each
rank; to pull these back each part is gathered and merged again. Embedding and head are units of their own, one together
where they share a tensor. Frozen teacher weights are sharded, and get neither gradient nor optimiser state; of a held
teacher the packed pieces are, and the matrices are formed of the gathered ones.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lrc.config import TrainConfig
from lrc.models.dense import Dense
from lrc.models.held_teacher import take_pieces
from lrc.models.moments import moment_shapes
from lrc.models.pair import PairEmbedding, PairLayer, PairNorm
from lrc.models.pair_head import PairHead
from lrc.models.pair_model import PairModel
from lrc.models.step_weights import step_weights_for
from lrc.models.stored_tensors import Piece, StoredTensors, whole_piece
from lrc.training.checkpoint import Held, Saved
from lrc.training.engine import Accept, merged_row_sizes, remembered, share_stored
from lrc.training.optimizer import make_optimizer, parameter_groups, set_rate, sharded_like, whole


class ShardedEngine:
    """The pair sharded over all ranks with `fully_shard`."""

    is_sharded = True

    def __init__(
        self,
        accelerator: Accelerator,
        pair: PairModel,
        settings: TrainConfig,
        *,
        accumulation: int,
        dense_rate_share: float = 1.0,
    ) -> None:
        """Shard a filled pair in place, part by part; arguments as `FullEngine` takes them.

        Each part goes to the device whole just before it is sharded, so that a device holds its share and one part.
        """
        self.accelerator = accelerator
        self.settings = settings
        self.shapes = {name: value.shape for name, value in pair.stored().items()}
        shapes = {name: value.shape for name, value in pair.trained().items()}
        self.moment_shapes = moment_shapes(shapes, settings.optimizer, pair.tables())
        sizes = merged_row_sizes(pair, settings)
        self.mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        stored = set(pair.stored().values())
        for unit in sharding_units(pair):
            for module in unit:
                take_pieces(module)
                module.to(accelerator.device)  # a teacher too large for it has waited in main memory
            share_stored(dict.fromkeys(value for module in unit for value in module.parameters() if value in stored))
            fully_shard(unit, mesh=self.mesh)
        pair.to(accelerator.device)
        for part in pair.parts():
            register_fsdp_forward_method(part, "merged_apart")
        self.step_weights = step_weights_for(pair, settings.merge, accumulation=accumulation, is_sharded=True)
        self.model: Any = fully_shard(pair, mesh=self.mesh)
        # else whoever calls a part of the pair before the whole, as a measure after resuming does, makes it a root
        self.model._get_fsdp_state()._lazy_init()
        self.trained, self.stored = pair.trained(), pair.stored()
        groups = parameter_groups(self.trained, pair.tables(), dense_rate_share, settings.rate_shares)
        self.optimizer = make_optimizer(
            groups,
            settings,
            pair.compute_dtype,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
        )
        for name, value in sizes.items():
            parameter = self.trained[name]
            size = value.to(parameter.device).contiguous()
            broadcast(size)  # only the first rank's pair was filled when they were measured
            self.optimizer.state[parameter]["row_size"] = sharded_like(size, parameter)

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[Any]:
        # gradients are exchanged in each micro-batch: kept back for the last, they would be whole on every rank
        if self.step_weights is not None:
            self.step_weights.form()
        return nullcontext()

    def backward(self, objective: Tensor) -> None:
        # FSDP averages gradients over ranks; the shares are to be added
        (objective * self.accelerator.num_processes).backward()

    def update(self, rate: float, accept: Accept) -> tuple[float, bool]:
        if self.step_weights is not None:
            self.step_weights.pull_back()
        norm = torch.nn.utils.get_total_norm([value.grad for value in self.trained.values() if value.grad is not None])
        size = float(whole(norm))
        moves = accept(size)
        if moves:
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.settings.max_grad_norm, norm)
            set_rate(self.optimizer, rate)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return size, moves

    @torch.no_grad()
    def tensors(self) -> Held:
        weights = {name: self._piece(parameter) for name, parameter in self.stored.items()}
        moments = {}
        for key in self.moment_shapes:
            what, _, name = key.partition("/")
            moments[key] = self._piece(remembered(self.optimizer, self.trained[name], what))
        return Held(
            weights={name: piece for name, piece in weights.items() if piece is not None},
            moments={key: piece for key, piece in moments.items() if piece is not None},
            is_sharded=True,
        )

    def _piece(self, value: Tensor) -> Piece | None:
        """Copy this rank's rows of a tensor; of one that every rank has, such as a step count, the first rank's."""
        if not isinstance(value, DTensor):
            return whole_piece(value.detach().cpu()) if self.accelerator.is_main_process else None
        local = value.to_local().detach().cpu().contiguous()
        first, last = self._rows(value.shape)
        assert local.shape[0] == last - first
        start = first * math.prod(value.shape[1:])
        return Piece(values=local, start=start, shape=value.shape) if local.numel() else None

    def _rows(self, shape: torch.Size) -> tuple[int, int]:
        """Return which rows of a tensor this rank has, as `torch.chunk` shares them out."""
        rank, rows = self.accelerator.process_index, -(-shape[0] // self.accelerator.num_processes)
        return min(rank * rows, shape[0]), min((rank + 1) * rows, shape[0])

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        for name, parameter in self.stored.items():
            parameter.copy_(self._read_rows(saved.weights, name, parameter))
        for key, shape in self.moment_shapes.items():
            what, _, name = key.partition("/")
            parameter = self.trained[name]
            # the fused AdamW counts beside the parameter, Muon on the CPU
            device = parameter.device if self.settings.optimizer == "adamw" else "cpu"
            kept = self._read_rows(saved.moments, key, parameter) if shape else saved.moments[key].to(device, copy=True)
            self.optimizer.state[parameter][what] = kept

    def _read_rows(self, tensors: StoredTensors, name: str, like: nn.Parameter) -> Tensor:
        """Read this rank's rows of a tensor, and none of the others."""
        assert isinstance(like, DTensor)
        shape = tensors.shapes[name]
        first, last = self._rows(shape)
        a_row = math.prod(shape[1:])
        rows = tensors.values_of(name, first * a_row, last * a_row).reshape(last - first, *shape[1:])
        whole_stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            rows.to(like.device, copy=True), self.mesh, like.placements, shape=shape, stride=whole_stride
        )

    def enter(self, dense: Dense | None) -> None:
        raise AssertionError("a switch of phases is refused before the engine is made")


def sharding_units(pair: PairModel) -> list[list[nn.Module]]:
    """List the modules that are gathered and freed together, in an order for `fully_shard`.

    Embedding and head come as one unit if they share a weight or a projection.
    """
    units: list[list[nn.Module]] = [[part] for part in pair.parts() if isinstance(part, PairLayer | PairNorm)]
    (embedding,) = (part for part in pair.parts() if isinstance(part, PairEmbedding))
    assert isinstance(pair.head, PairHead)
    shared = {id(value) for value in embedding.parameters()} & {id(value) for value in pair.head.parameters()}
    ends: list[list[nn.Module]] = [[embedding, pair.head]] if shared else [[embedding], [pair.head]]
    return units + ends
