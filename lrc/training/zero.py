"""DeepSpeed ZeRO: stages 1 and 2 shard moments and gradients, stage 3 also the weights, the teacher's too.

In stage 3 each part of the pair is a leaf module: its weights are gathered together for its forward and backward, since
the merge reads the teacher's from outside their own modules. A held teacher's packed pieces are among these weights; in
stages 1 and 2 they are nobody's parameters. The engine computes in the pair's own dtypes; its
mixed-precision settings are left out, because trained tensors are float32 and the merge casts them.
"""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lrc.config import TrainConfig
from lrc.models.dense import Dense
from lrc.models.held_teacher import take_pieces
from lrc.models.moments import MOMENTS, moment_shapes
from lrc.models.pair import PairEmbedding, PairLayer, PairNorm
from lrc.models.pair_head import PairHead
from lrc.models.pair_model import PairModel
from lrc.models.stored_tensors import Piece, StoredTensors, whole_piece
from lrc.training.checkpoint import Held, Saved
from lrc.training.engine import Accept
from lrc.training.optimizer import make_optimizer, set_rate


class ZeroEngine:
    """The pair in a DeepSpeed engine."""

    def __init__(self, accelerator: Accelerator, pair: PairModel, settings: TrainConfig, *, accumulation: int) -> None:
        """Take over a filled pair, equal on every rank.

        Args:
            accelerator: With the launcher's or the recipe's DeepSpeed plugin.
            pair: Its weights become the engine's.
            settings: The recipe's section.
            accumulation: Micro-batches of one step.
        """
        import deepspeed

        # DeepSpeed calls functions that torch has renamed, once for every collective
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
        self.accelerator = accelerator
        plugin = accelerator.state.deepspeed_plugin
        assert plugin is not None
        self.stage = int(plugin.zero_stage)
        self.is_sharded = self.stage == 3
        self.trained = pair.trained()
        self.shapes = {name: value.shape for name, value in self.trained.items()}
        self.moment_shapes = moment_shapes(self.shapes, settings.optimizer)
        if self.is_sharded:
            take_pieces(pair)
            deepspeed.utils.set_z3_leaf_modules(pair, [PairEmbedding, PairNorm, PairLayer, PairHead])
            for part in pair.parts():
                if isinstance(part, PairEmbedding):
                    part.register_forward_pre_hook(_with_anchor)
        self.engine, *_ = deepspeed.initialize(
            model=pair,
            optimizer=make_optimizer(self.trained.values(), settings),
            config=engine_config(plugin.deepspeed_config, settings, accumulation=accumulation),
        )
        self.model: Any = self.engine

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[Any]:
        self._is_last = is_last
        return nullcontext()

    def backward(self, objective: Tensor) -> None:
        # DeepSpeed averages gradients over ranks; the shares are to be added
        self.engine.backward(objective * self.accelerator.num_processes, scale_wrt_gas=False)
        if not self._is_last:
            self.engine.step()  # counts the micro-batch

    def update(self, rate: float, accept: Accept) -> tuple[float, bool]:
        set_rate(self.engine.optimizer, rate)
        self.engine.step()  # clips; leaves the weights alone if the norm is not finite
        norm = float(self.engine.get_global_grad_norm())
        accept(norm)
        return norm, bool(self.engine.was_step_applied())

    def tensors(self) -> Held:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.is_sharded:
            return self._local_pieces()
        weights: dict[str, Piece] = {}
        moments: dict[str, Piece] = {}
        for name, parameter in self.trained.items():
            whole = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            weight = safe_get_full_fp32_param(parameter)
            if self.accelerator.is_main_process:
                weights[name] = whole_piece(_on_cpu(weight).reshape(self.shapes[name]))
                for key, value in whole.items():
                    moments[f"{key}/{name}"] = whole_piece(_on_cpu(value).reshape(self.shapes[name]))
        return Held(weights=weights, moments=moments | self._step_counts(), is_sharded=False)

    def _local_pieces(self) -> Held:
        """Copy this rank's pieces in stage 3, each flat, without the zeros that the last one is padded with."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        weights: dict[str, Piece] = {}
        moments: dict[str, Piece] = {}
        for name, parameter in self.trained.items():
            weight = safe_get_local_fp32_param(parameter)
            start, stop = self._place(name, weight.numel())
            if start < stop:
                values = {key: safe_get_local_optimizer_state(parameter, key) for key in MOMENTS}
                weights[name] = Piece(values=_on_cpu(weight[: stop - start]), start=start, shape=self.shapes[name])
                for key, value in values.items():
                    piece = Piece(values=_on_cpu(value[: stop - start]), start=start, shape=self.shapes[name])
                    moments[f"{key}/{name}"] = piece
        return Held(weights=weights, moments=moments | self._step_counts(), is_sharded=True)

    def _place(self, name: str, size: int) -> tuple[int, int]:
        """Return where this rank's piece, `size` values with the padding, begins and ends in the flattened tensor."""
        whole, rank = self.shapes[name].numel(), self.accelerator.process_index
        return min(rank * size, whole), min((rank + 1) * size, whole)

    def _step_counts(self) -> dict[str, Piece]:
        """Return AdamW's count, which is one for all, for each tensor; the first rank writes it."""
        if not self.accelerator.is_main_process:
            return {}
        step = _on_cpu(self.engine.optimizer.optimizer.state[self._flat_partitions()[0]]["step"]).reshape(())
        return {f"step/{name}": whole_piece(step.clone()) for name in self.trained}

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._make_states(saved.moments)
        if self.is_sharded:
            self._load_shards(saved)
            return
        for name, parameter in self.trained.items():
            weight = saved.weights[name].to(parameter.device)
            parameter.copy_(weight)
            safe_set_full_fp32_param(parameter, weight)
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, saved.moments[f"{key}/{name}"].to(parameter.device), key)

    def enter(self, dense: Dense | None) -> None:
        raise AssertionError("phases are refused before the engine is made")

    def _load_shards(self, saved: Saved) -> None:
        """Set this rank's pieces in stage 3, each `1 / ranks` of a flat tensor, the last one padded with zeros."""
        import deepspeed
        from deepspeed.utils import (
            safe_get_local_fp32_param,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        for name, parameter in self.trained.items():
            size = safe_get_local_fp32_param(parameter).numel()
            start, stop = self._place(name, size)

            def piece(
                tensors: StoredTensors, key: str, start: int = start, stop: int = stop, size: int = size
            ) -> Tensor:
                values = tensors.values_of(key, start, stop)
                return torch.nn.functional.pad(values, (0, size - values.numel())).to(self.accelerator.device)

            safe_set_local_fp32_param(parameter, piece(saved.weights, name))
            for key in MOMENTS:
                safe_set_local_optimizer_state(parameter, piece(saved.moments, f"{key}/{name}"), key)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if self.accelerator.is_main_process:  # whose values all ranks then take their pieces of
                    parameter.copy_(saved.weights[name].to(self.accelerator.device))

    def _flat_partitions(self) -> list[Tensor]:
        """Return this rank's float32 master weights, the tensors that AdamW works on."""
        zero = self.engine.optimizer
        return list(zero.fp32_partitioned_groups_flat if self.is_sharded else zero.single_partition_of_fp32_groups)

    def _make_states(self, moments: Mapping[str, Tensor]) -> None:
        """Make AdamW's state before the first step, so that there is something to set."""
        optimizer = self.engine.optimizer.optimizer
        step = moments[next(name for name in moments if name.startswith("step/"))]
        for flat in self._flat_partitions():
            state = optimizer.state[flat]
            state["step"] = step.to(flat.device, copy=True)  # there the fused AdamW counts
            for key in MOMENTS:
                state.setdefault(key, torch.zeros_like(flat))
        if not self.is_sharded:
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()  # DeepSpeed does so after the first step


def _with_anchor(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # stage 3 frees a module's weights when the gradient of its inputs is there; ids have none, so that they would be
    # freed before the embedding's backward has begun
    return (*args, torch.zeros((), device=args[0].device, requires_grad=True))


def _on_cpu(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone()


def engine_config(plugin: dict[str, Any], settings: TrainConfig, *, accumulation: int) -> dict[str, Any]:
    """Make DeepSpeed's configuration: the launcher's, with the recipe's batch, clipping and dtype."""
    config = {key: value for key, value in plugin.items() if key not in ("train_batch_size", "fp16", "bf16", "amp")}
    return config | {
        "train_micro_batch_size_per_gpu": settings.batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": float("inf"),
    }
