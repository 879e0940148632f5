"""The two optimisers of the loop: AdamW as published, and Muon in units of each projection row's own size.

Free weights of a dense phase (docs/methods.md) form groups of their own, with a rate of their own; Muon measures them
by the rows of the merged weight that they start from.

A projection's rows differ in size by the teacher's norm gains (SmolLM2's first attention layer reads through rows of
0.002, its writers write through rows of 0.05). One absolute step for all of them tears the small ones apart before the
large ones have moved (docs/log.md), so Muon here works on `P / D`, `D` the rows' root mean squares at the start: a
learning rate is the share of its own size that an entry moves by.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lrc.config import TrainConfig
from lrc.errors import ConfigError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd polynomial that drives singular values to about 1 (Jordan 2024, torch.optim.Muon)."""
NEWTON_SCHULZ_STEPS = (3, 2)
"""Steps before the matrix is formed anew. More on one square would lose its small eigenvalues to rounding."""
STACK_BYTES = {"cpu": 2**20}
"""Matrices of one shape that are orthogonalised side by side: on a CPU what its caches hold."""
LARGEST_STACK_BYTES = 64 * 2**20
GATHERED_BYTES = 2**29
"""Of all ranks' matrices at a time, in float32; of larger ones some ranks have none."""
SMALLEST_ROW = 0.1
"""Share of the mean row that a smaller row counts as; a channel that a start leaves out can still grow."""
GAIN_SHARE = 0.3
"""The norm gains' step as a share of the projections'; they start at 1, so it is relative as well."""
ADAM_EPSILON = 1e-8


def rate_share(name: str, shares: Mapping[str, float]) -> float:
    """Return a tensor's share of the learning rate: the product of those whose key is a part of its name.

    Args:
        name: Checkpoint name, `projections.model.layers.0.mlp.down_proj`.
        shares: `train.rate_shares`, by part (`down_proj`, `gains`).
    """
    parts = name.split(".")
    return math.prod(share for key, share in shares.items() if key in parts)


def check_rate_shares(shares: Mapping[str, float], names: Collection[str]) -> None:
    """Check that every key is a part of some trained tensor's name.

    Raises:
        ConfigError: One is not, with all parts there are.
    """
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    unknown = sorted(set(shares) - set(parts))
    if unknown:
        raise ConfigError(
            f"train.rate_shares names what no trained tensor is called: {', '.join(unknown)}. Parts of their names are "
            f"{', '.join(parts)}."
        )


def parameter_groups(
    trained: dict[str, nn.Parameter],
    tables: Collection[str],
    dense_rate_share: float,
    rate_shares: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Group trained tensors by their share of the learning rate: projections and gains, free weights, free tables.

    Args:
        trained: By checkpoint name.
        tables: Names of embedding and head, of which a batch touches few rows.
        dense_rate_share: What free weights' learning rate is of the run's.
        rate_shares: Shares by parts of names, on top of that.
    """
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, value in trained.items():
        is_free = name.startswith("dense.")
        share = (dense_rate_share if is_free else 1.0) * rate_share(name, rate_shares or {})
        groups.setdefault((is_free, is_free and name in tables, share), []).append(value)
    return [
        {"params": values, "rate_share": share, "is_table": is_table}
        for (_, is_table, share), values in sorted(groups.items(), key=lambda group: group[0])
    ]


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of a step; each group takes its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_share", 1.0)


def make_optimizer(
    trained: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    settings: TrainConfig,
    compute_dtype: torch.dtype = torch.float32,
    *,
    rank: int = 0,
    num_ranks: int = 1,
) -> torch.optim.Optimizer:
    """Make the recipe's optimiser over trained tensors, or over their `parameter_groups`.

    Args:
        trained: Tensors or groups.
        settings: The recipe's section.
        compute_dtype: What the models compute in; trained tensors are float32.
        rank: This process among those that step together.
        num_ranks: How many these are.
    """
    betas = (settings.beta1, settings.beta2)
    if settings.optimizer == "muon":
        return Muon(
            trained,
            lr=settings.learning_rate,
            betas=betas,
            weight_decay=settings.weight_decay,
            rounds=compute_dtype == torch.bfloat16,
            rank=rank,
            num_ranks=num_ranks,
        )
    return torch.optim.AdamW(
        trained, lr=settings.learning_rate, betas=betas, weight_decay=settings.weight_decay, fused=True
    )


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps for projections and free weights, Adam for norm gains and free tables.

    A projection `P`, `[d_T, d_S]`, with row sizes `D`, `[d_T, 1]`, and gradient `G` moves by

        M = beta1 M + (1 - beta1) D G
        P = P - lr sqrt(max(d_T, d_S)) D polar(beta1 M + (1 - beta1) D G)

    where `polar(X) = X (X.T X)^(-1/2)`, so that the step's entries have a root mean square of `lr D` whatever the
    gradient's spectrum (Jordan 2024). Weight decay is decoupled: `P` shrinks by `lr * weight_decay` a step.

    A free weight `W`, `[out, in]`, moves in the same way, `D` the sizes of its own rows at the start of its phase (of
    the merged weight's, for an update that starts at zero). Stacked experts are as many matrices. A free embedding or
    head moves by Adam's steps times `D`: a batch touches few of its rows, and a polar factor would give these the step
    of all.

    Ranks that step together orthogonalise different matrices and hand each other the results, so all take the same
    step. Of a sharded matrix each rank keeps its rows' momentum, and the whole direction is gathered first. The stacks
    bound what is gathered at once.

    torch.optim.Muon orthogonalises in bfloat16, which many CPUs emulate a hundred times slower, and knows no row sizes.
    Here it is bfloat16 where the models compute in it, so where that is fast, and float32 elsewhere.
    """

    def __init__(
        self,
        trained: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        rounds: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        super().__init__(trained, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.rounds = rounds
        """Polar factors are formed in bfloat16."""
        self.rank, self.num_ranks = rank, num_ranks

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every trained tensor that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            stacks: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.dim() > 1 and "row_size" not in self.state[parameter]:
                    self.state[parameter]["row_size"] = row_sizes(parameter)  # reads the device: once
                if parameter.dim() > 1 and not group.get("is_table", False):
                    stacks.setdefault(parameter.shape, []).append(parameter)
                else:
                    self._adam_step(parameter, group)
            for shape, matrices in stacks.items():
                size, device = 4 * shape.numel(), matrices[0].device.type
                a_rank = max(1, STACK_BYTES.get(device, LARGEST_STACK_BYTES) // size)
                height = min(self.num_ranks * a_rank, max(1, GATHERED_BYTES // size))
                for first in range(0, len(matrices), height):
                    self._muon_step(matrices[first : first + height], group)
        return None

    def _muon_step(self, matrices: list[nn.Parameter], group: dict[str, Any]) -> None:
        momentum, _ = group["betas"]
        dtype = torch.bfloat16 if self.rounds else matrices[0].dtype
        directions = []
        for index, matrix in enumerate(matrices):
            state = self.state[matrix]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(matrix)
            assert matrix.grad is not None
            gradient = matrix.grad * state["row_size"]
            state["momentum"].lerp_(gradient, 1 - momentum)
            direction = whole(gradient.lerp_(state["momentum"], momentum).to(dtype))
            if index % self.num_ranks == self.rank:
                directions.append(direction)
        own = orthogonalise(torch.stack(directions)) if directions else direction.new_empty(0, *direction.shape)
        steps = in_turn(own, len(matrices), self.num_ranks)
        length = group["lr"] * math.sqrt(max(steps.shape[-2:]))
        for matrix, step in zip(matrices, steps, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            moved = sharded_like(step.to(matrix.dtype), matrix)
            matrix.addcmul_(moved, self.state[matrix]["row_size"], value=-length)

    def _adam_step(self, vector: nn.Parameter, group: dict[str, Any]) -> None:
        """Move a vector by its share of the rate, or a table by the rate times its rows' sizes."""
        beta1, beta2 = group["betas"]
        state = self.state[vector]
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(vector), torch.zeros_like(vector)
        assert vector.grad is not None
        state["step"] += 1
        state["exp_avg"].lerp_(vector.grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(vector.grad.square(), 1 - beta2)
        count = int(state["step"])
        spread = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(ADAM_EPSILON)
        length = group["lr"] / (1 - beta1**count)
        if "row_size" in state:
            vector.mul_(1 - group["lr"] * group["weight_decay"])
            vector.addcmul_(state["exp_avg"] / spread, state["row_size"], value=-length)
        else:
            vector.addcdiv_(state["exp_avg"], spread, value=-GAIN_SHARE * length)


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all ranks, which all have to call; return any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut this rank's part out of a tensor that every rank has whole, if `like` is sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def in_turn(own: Tensor, total: int, num_ranks: int) -> Tensor:
    """Collect what the ranks have computed in turn: of `total` things rank `r` has `r`, `r + num_ranks`, ...

    Args:
        own: This rank's, `[count, ...]`; the first ranks may have one more than the others.
        total: Things of all ranks.
        num_ranks: All must call; of one nothing is exchanged.

    Returns:
        All of them in order, `[total, ...]`, the same bits on every rank.
    """
    if num_ranks == 1:
        return own
    most = -(-total // num_ranks)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    gathered = own.new_empty(num_ranks * most, *own.shape[1:])
    dist.all_gather_into_tensor(gathered, padded)
    by_rank = gathered.view(num_ranks, most, *own.shape[1:])
    return by_rank.transpose(0, 1).flatten(0, 1)[:total]


def row_sizes(matrix: Tensor) -> Tensor:
    """Return each row's root mean square, `[..., rows, 1]`, none below a tenth of their mean."""
    sizes = matrix.detach().square().mean(-1, keepdim=True).sqrt()
    mean = float(whole(sizes.mean()))
    return sizes.clamp_min(SMALLEST_ROW * mean).clamp_min(torch.finfo(sizes.dtype).tiny)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix of `[..., rows, columns]` to about 1 (0.7 to 1.2).

    Newton-Schulz: `X = X p(X.T X)`, `p(S) = a + b S + c S^2`, five times from `X = G / |G|`, in the matrices' dtype. A
    step turns `S = X.T X` into `p S p`, so steps follow each other on the small square matrix alone, and `X` takes the
    product of their `p` at once.
    """
    is_tall = matrices.shape[-2] >= matrices.shape[-1]
    result: Tensor = (matrices if is_tall else matrices.mT).flatten(0, -3)
    result = result / result.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(result.dtype).tiny)
    for steps in NEWTON_SCHULZ_STEPS:
        square = result.mT @ result
        polynomial = factor = _polynomial(square)
        for _ in range(steps - 1):
            square = square @ polynomial @ polynomial  # they commute
            polynomial = _polynomial(square)
            factor = factor @ polynomial
        result = result @ factor
    return (result if is_tall else result.mT).reshape(matrices.shape)


def _polynomial(square: Tensor) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    result = torch.baddbmm(square, square, square, beta=b, alpha=c)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result
