"""What trains: one process or a strategy over several, behind the few calls that the loop makes.

Whatever the strategy, gradients are sums over ranks of each rank's share of the objective, moments and master weights
are float32, and a checkpoint holds every tensor whole. `FullEngine` keeps all of it on every rank; the ones that shard
it are in `sharded.py` (FSDP2) and `zero.py` (DeepSpeed).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from lrc.config import TrainConfig
from lrc.models.pair_model import PairModel
from lrc.training.checkpoint import Saved
from lrc.training.optimizer import make_optimizer, moment_shapes

Accept = Callable[[float], bool]
"""Says of a step's gradient norm before clipping whether the step may be done; every rank gets the same answer."""


class Engine(Protocol):
    """A pair with its optimiser."""

    model: Any
    """The pair as it is to be called in training."""
    shapes: dict[str, torch.Size]
    """Of the whole trained tensors, by checkpoint name."""
    moment_shapes: dict[str, torch.Size]
    """Of what the optimiser remembers, by name in the checkpoint."""
    is_sharded: bool
    """No rank holds all weights: a forward pass needs all of them, also to measure."""

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Surround forward and backward of one micro-batch; ranks exchange gradients at the last one."""
        ...

    def backward(self, objective: Tensor) -> None:
        """Add the gradient of this rank's share."""
        ...

    def update(self, rate: float, accept: Accept) -> tuple[float, bool]:
        """Clip and step if `accept` says yes; drop the gradient.

        Returns:
            The gradient norm before clipping, and whether the weights have moved. DeepSpeed knows the norm only after
            it has moved them.
        """
        ...

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gather weights and moments, whole and on the CPU, on the first process; all ranks must call it."""
        ...

    def load(self, saved: Saved) -> None:
        """Set weights and moments."""
        ...


class FullEngine:
    """All of the pair on every rank: one process, or DDP."""

    is_sharded = False

    def __init__(self, accelerator: Accelerator, pair: PairModel, settings: TrainConfig) -> None:
        """Take over a filled pair; DDP hands the first rank's weights to the others."""
        self.accelerator = accelerator
        self.settings = settings
        self.trained = pair.trained()
        self.shapes = {name: value.shape for name, value in self.trained.items()}
        self.moment_shapes = moment_shapes(self.shapes, settings)
        self.optimizer = make_optimizer(self.trained.values(), settings)
        self.model: Any = accelerator.prepare_model(pair) if accelerator.num_processes > 1 else pair

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)

    def backward(self, objective: Tensor) -> None:
        # DDP averages gradients over ranks; the shares are to be added
        self.accelerator.backward(objective * self.accelerator.num_processes)

    def update(self, rate: float, accept: Accept) -> tuple[float, bool]:
        norm = torch.nn.utils.get_total_norm([value.grad for value in self.trained.values() if value.grad is not None])
        moves = accept(float(norm))
        if moves:
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.settings.max_grad_norm, norm)
            (group,) = self.optimizer.param_groups
            group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm), moves

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if not self.accelerator.is_main_process:
            return {}, {}
        weights = {name: value.detach().cpu().contiguous() for name, value in self.trained.items()}
        moments = {
            f"{key}/{name}": kept.detach().cpu().contiguous()
            for name, value in self.trained.items()
            for key, kept in self.optimizer.state[value].items()
        }
        return weights, moments

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(saved.weights[name])
        for key, shape in self.moment_shapes.items():
            what, _, name = key.partition("/")
            parameter = self.trained[name]
            # beside the parameter, also the step count of the fused AdamW; Muon counts on the CPU
            device = parameter.device if shape or self.settings.optimizer == "adamw" else "cpu"
            self.optimizer.state[parameter][what] = saved.moments[key].to(device, copy=True)
