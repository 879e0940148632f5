"""What trains: one process or a strategy over several, behind the few calls that the loop makes.

Whatever the strategy, gradients are sums over ranks of each rank's share of the objective, moments and master weights
are float32, and a checkpoint holds the same tensors. `FullEngine` keeps all of it on every rank; the ones that shard it
are in `sharded.py` (FSDP2) and `zero.py` (DeepSpeed).
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from lrc.config import TrainConfig
from lrc.errors import ConfigError
from lrc.models.dense import Dense
from lrc.models.moments import moment_shapes
from lrc.models.pair_model import PairModel
from lrc.models.step_weights import step_weights_for
from lrc.models.stored_tensors import whole_piece
from lrc.training.checkpoint import Held, Saved
from lrc.training.optimizer import make_optimizer, parameter_groups, row_sizes, set_rate

Accept = Callable[[float], bool]
"""Says of a step's gradient norm before clipping whether the step may be done; every rank gets the same answer."""


class Engine(Protocol):
    """A pair with its optimiser."""

    model: Any
    """The pair as it is to be called in training."""
    shapes: dict[str, torch.Size]
    """Of the whole tensors of a checkpoint, by name: trained ones, and what stays as it is (`PairModel.stored`)."""
    moment_shapes: dict[str, torch.Size]
    """Of what the optimiser remembers, by name in the checkpoint."""
    is_sharded: bool
    """No rank holds all weights: a forward pass needs all ranks, also to measure, and each writes what it holds."""

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Surround forward and backward of one micro-batch; gradients are exchanged by the end of the last."""
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

    def tensors(self) -> Held:
        """Copy what this rank writes of a checkpoint to the CPU; all ranks must call it."""
        ...

    def load(self, saved: Saved) -> None:
        """Set weights and moments; all ranks must call it."""
        ...

    def enter(self, dense: Dense | None) -> None:
        """Go over to another phase of training; tensors that stay keep their moments, new ones start without."""
        ...


def share_stored(stored: Iterable[nn.Parameter]) -> None:
    """Give the first process's values of some tensors to all; on every rank the same ones in the same order."""
    with torch.no_grad():
        for parameter in stored:
            broadcast(parameter.data)


def merged_row_sizes(pair: PairModel, settings: TrainConfig) -> dict[str, Tensor]:
    """Measure the rows that Muon moves free weights by, where these are added to merged ones; by checkpoint name."""
    found: dict[str, Tensor] = {}
    for name in pair.trained() if settings.optimizer == "muon" else ():
        merged = pair.merged_under(name)
        if merged is not None:
            found[name] = row_sizes(merged)
    return found


def remembered(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, what: str) -> Tensor:
    """Return one entry of what an optimiser remembers of a trained tensor.

    Of a tensor that no gradient has reached it remembers nothing: then what its first step would begin with. Such a
    tensor has not moved, so its rows are still of the size that they began with.
    """
    state = optimizer.state.get(parameter, {})
    if what in state:
        found: Tensor = state[what]
        return found
    if what == "step":
        return torch.zeros(())
    return row_sizes(parameter) if what == "row_size" else torch.zeros_like(parameter)


class FullEngine:
    """All of the pair on every rank: one process, or DDP."""

    is_sharded = False

    def __init__(
        self,
        accelerator: Accelerator,
        pair: PairModel,
        settings: TrainConfig,
        *,
        accumulation: int,
        dense_rate_share: float = 1.0,
    ) -> None:
        """Take over a filled pair; DDP hands the first rank's weights to the others.

        Args:
            accelerator: Knows the ranks.
            pair: In the phase that training is to begin in.
            settings: The recipe's section.
            accumulation: Micro-batches of one step.
            dense_rate_share: What free weights' learning rate is of the run's.
        """
        self.accelerator = accelerator
        self.pair = pair
        self.settings = settings
        self.step_weights = step_weights_for(pair, settings.merge, accumulation=accumulation)
        self.dense_rate_share = dense_rate_share
        self._take_over({})

    def _take_over(self, kept: dict[Any, Any]) -> None:
        """Read off the pair what it trains by now; `kept` is the optimiser's state of what it trained before."""
        self.trained, self.stored = self.pair.trained(), self.pair.stored()
        self.shapes = {name: value.shape for name, value in self.stored.items()}
        shapes = {name: value.shape for name, value in self.trained.items()}
        tables = self.pair.tables()
        self.moment_shapes = moment_shapes(shapes, self.settings.optimizer, tables)
        groups = parameter_groups(self.trained, tables, self.dense_rate_share, self.settings.rate_shares)
        self.optimizer = make_optimizer(
            groups,
            self.settings,
            self.pair.compute_dtype,
            rank=self.accelerator.process_index,
            num_ranks=self.accelerator.num_processes,
        )
        sizes = merged_row_sizes(self.pair, self.settings)
        for name, value in self.trained.items():
            if value in kept:
                self.optimizer.state[value] = kept[value]
            elif name in sizes:
                self.optimizer.state[value]["row_size"] = sizes[name]
        self.model: Any = self.pair
        if self.accelerator.num_processes > 1:
            self.model = self.accelerator.prepare_model(self.pair)
            self.model.forward_sync_buffers = False  # they are alike on all ranks; DDP has sent them once

    def enter(self, dense: Dense | None) -> None:
        (self.model,) = self.accelerator.free_memory(self.model)  # DDP's hooks sit on the tensors that it began with
        self.pair.enter(dense)
        self._take_over(self.optimizer.state)

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[Any]:
        if self.step_weights is not None:
            self.step_weights.form()
        without: AbstractContextManager[Any] = self.accelerator.no_sync(self.model)
        return nullcontext() if is_last and self.step_weights is None else without

    def backward(self, objective: Tensor) -> None:
        # DDP averages gradients over ranks; the shares are to be added
        ranks = self.accelerator.num_processes if self.step_weights is None else 1
        self.accelerator.backward(objective * ranks)

    def update(self, rate: float, accept: Accept) -> tuple[float, bool]:
        if self.step_weights is not None:
            self.step_weights.pull_back()
            self._add_over_ranks()
        elif self.accelerator.num_processes > 1:
            self._check_exchanged()
        norm = torch.nn.utils.get_total_norm([value.grad for value in self.trained.values() if value.grad is not None])
        size = float(norm)
        moves = accept(size)
        if moves:
            torch.nn.utils.clip_grads_with_norm_(self.trained.values(), self.settings.max_grad_norm, norm)
            set_rate(self.optimizer, rate)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return size, moves

    def _check_exchanged(self) -> None:
        """Check that every trained tensor has a gradient: DDP keeps back the bucket of one that gets none.

        Raises:
            ConfigError: One has none.
        """
        lacking = [name for name, value in self.trained.items() if value.grad is None]
        if lacking:
            raise ConfigError(
                "DDP must see a gradient of every trained tensor where each micro-batch merges, but none has reached "
                f"{len(lacking)} of them, for example {lacking[0]}. Set train.merge=step, which exchanges the others'."
            )

    def _add_over_ranks(self) -> None:
        """Exchange the gradients, which DDP has seen none of: they came to the projections after its last backward."""
        if self.accelerator.num_processes > 1:
            gradients = (value.grad for value in self.trained.values())
            works = [dist.all_reduce(gradient, async_op=True) for gradient in gradients if gradient is not None]
            for work in works:
                work.wait()

    def tensors(self) -> Held:
        if not self.accelerator.is_main_process:
            return Held(weights={}, moments={}, is_sharded=False)
        weights = {name: whole_piece(value.detach().cpu().contiguous()) for name, value in self.stored.items()}
        moments = {}
        for key in self.moment_shapes:
            what, _, name = key.partition("/")
            kept = remembered(self.optimizer, self.trained[name], what)
            moments[key] = whole_piece(kept.detach().cpu().contiguous())
        return Held(weights=weights, moments=moments, is_sharded=False)

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        for name, parameter in self.stored.items():
            parameter.copy_(saved.weights[name])
        for key, shape in self.moment_shapes.items():
            what, _, name = key.partition("/")
            parameter = self.trained[name]
            # beside the parameter, also the step count of the fused AdamW; Muon counts on the CPU
            device = parameter.device if shape or self.settings.optimizer == "adamw" else "cpu"
            self.optimizer.state[parameter][what] = saved.moments[key].to(device, copy=True)
