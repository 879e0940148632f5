"""FSDP2: teacher and trained tensors of each pair layer are sharded together, gathered for its forward and backward.

A `PairLayer` is the unit: its merge happens inside its forward, on gathered weights, and recomputation too. Embedding
and head are units of their own, one together where they share a tensor. Frozen teacher weights are sharded, and get
neither gradient nor optimiser state.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lrc.config import TrainConfig
from lrc.models.dense import Dense
from lrc.models.pair import PairEmbedding, PairHead, PairLayer, PairNorm
from lrc.models.pair_model import PairModel
from lrc.training.checkpoint import Saved
from lrc.training.engine import Accept
from lrc.training.optimizer import MOMENTS, make_optimizer, moment_shapes, parameter_groups, set_rate


class ShardedEngine:
    """The pair sharded over all ranks with `fully_shard`."""

    is_sharded = True

    def __init__(
        self, accelerator: Accelerator, pair: PairModel, settings: TrainConfig, *, dense_rate_share: float = 1.0
    ) -> None:
        """Shard a filled pair, equal on every rank, in place; arguments as `FullEngine` takes them."""
        self.accelerator = accelerator
        self.settings = settings
        self.shapes = {name: value.shape for name, value in pair.stored().items()}
        self.moment_shapes = moment_shapes({name: value.shape for name, value in pair.trained().items()}, settings)
        self.mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for unit in sharding_units(pair):
            fully_shard(unit, mesh=self.mesh)
        self.model: Any = fully_shard(pair, mesh=self.mesh)
        # else whoever calls a part of the pair before the whole, as a measure after resuming does, makes it a root
        self.model._get_fsdp_state()._lazy_init()
        self.trained, self.stored = pair.trained(), pair.stored()
        groups = parameter_groups(self.trained, pair.tables(), dense_rate_share)
        self.optimizer = make_optimizer(groups, settings)

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[Any]:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(is_last)
        return nullcontext()

    def backward(self, objective: Tensor) -> None:
        # FSDP averages gradients over ranks; the shares are to be added
        (objective * self.accelerator.num_processes).backward()

    def update(self, rate: float, accept: Accept) -> tuple[float, bool]:
        norm = torch.nn.utils.get_total_norm([value.grad for value in self.trained.values() if value.grad is not None])
        assert isinstance(norm, DTensor)
        whole = float(norm.full_tensor())
        moves = accept(whole)
        if moves:
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.settings.max_grad_norm, norm)
            set_rate(self.optimizer, rate)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return whole, moves

    @torch.no_grad()
    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for name, parameter in self.stored.items():
            self._gather(weights, name, parameter)
        for name, parameter in self.trained.items():
            state = self.optimizer.state[parameter]
            self._gather(moments, f"step/{name}", state["step"])
            for key in MOMENTS:
                self._gather(moments, f"{key}/{name}", state[key])
        return weights, moments

    def _gather(self, target: dict[str, Tensor], name: str, value: Tensor) -> None:
        """Gather one tensor after the other, so that a device holds one whole one at most."""
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if self.accelerator.is_main_process:
            target[name] = whole.detach().cpu().contiguous()

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        for name, parameter in self.stored.items():
            parameter.copy_(self._sharded(saved.weights[name], parameter))
        for name, parameter in self.trained.items():
            step = saved.moments[f"step/{name}"].to(parameter.device, copy=True)  # there the fused AdamW counts
            self.optimizer.state[parameter] = {"step": step} | {
                key: self._sharded(saved.moments[f"{key}/{name}"], parameter) for key in MOMENTS
            }

    def enter(self, dense: Dense | None) -> None:
        raise AssertionError("a switch of phases is refused before the engine is made")

    def _sharded(self, whole: Tensor, like: nn.Parameter) -> DTensor:
        assert isinstance(like, DTensor)
        whole = whole.to(like.device, copy=True)
        return distribute_tensor(whole, self.mesh, like.placements, src_data_rank=None)


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
