"""Where loaded optimiser state lies, where `meta` plays the GPU, and what of a gradient the optimiser gets."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrc.config import TrainConfig
from lrc.models.moments import MOMENTS
from lrc.models.stored_tensors import StoredTensors
from lrc.training.checkpoint import Saved
from lrc.training.engine import FullEngine
from lrc.training.run_state import RunState
from tests.models.test_pair import make_pair
from tests.tiny import tiny_teacher
from tests.training.test_loop_parts import Reads

SHAPES = {"projection": (6, 4), "gain": (4,)}


def trained_on_meta() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.empty(shape, device="meta")) for name, shape in SHAPES.items()}


def pair_of(trained: dict[str, nn.Parameter]) -> Any:
    """Stand in for a pair whose trained tensors these are."""
    return SimpleNamespace(
        trained=lambda: trained,
        stored=lambda: trained,
        tables=frozenset,
        merged_under=lambda name: None,
        compute_dtype=torch.float32,
    )


def saved_moments(folder: Path, shapes: dict[str, Any]) -> Saved:
    save_file({name: torch.ones(shape) for name, shape in SHAPES.items()}, folder / "weights")
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "moments")
    weights, moments = (StoredTensors([folder / name]) for name in ("weights", "moments"))
    state = RunState(step=1, tokens=1, seconds=0.0, sequences_per_step=1)
    return Saved(weights=weights, moments=moments, state=state)


ADAMW_SHAPES = {f"{key}/{name}": shape for name, shape in SHAPES.items() for key in MOMENTS}
ADAMW_SHAPES |= {f"step/{name}": () for name in SHAPES}


@pytest.mark.parametrize(("optimizer", "step"), [("adamw", "meta"), ("muon", "cpu")])
def test_a_step_count_lies_where_the_optimiser_counts(
    tmp_path: Path, optimizer: Literal["adamw", "muon"], step: str
) -> None:
    trained = trained_on_meta()
    settings = TrainConfig(max_steps=1, optimizer=optimizer)
    engine = FullEngine(Accelerator(cpu=True), pair_of(trained), settings, accumulation=1)
    engine.load(saved_moments(tmp_path, engine.moment_shapes))
    states = {name: engine.optimizer.state[value] for name, value in trained.items()}
    assert states["gain"]["step"].device.type == step
    assert {value.device.type for state in states.values() for key, value in state.items() if key != "step"} == {"meta"}


@pytest.mark.parametrize(("found", "kept"), [(10.0, 0.5), (0.25, 0.25)], ids=["above", "below"])
def test_a_gradient_above_the_largest_norm_is_scaled_down_to_it(found: float, kept: float) -> None:
    trained = {name: nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    settings = TrainConfig(max_steps=1, max_grad_norm=0.5, beta1=0.9)
    engine = FullEngine(Accelerator(cpu=True), pair_of(trained), settings, accumulation=1)
    generator = torch.Generator().manual_seed(0)
    directions = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    length = torch.cat([direction.flatten() for direction in directions.values()]).norm()
    for name, value in trained.items():
        value.grad = directions[name] * found / length
    norm, has_moved = engine.update(1e-3, lambda norm: True)
    assert norm == pytest.approx(found, rel=1e-5)  # the one before
    assert has_moved
    for name, value in trained.items():
        first_moment = engine.optimizer.state[value]["exp_avg"]
        torch.testing.assert_close(first_moment, 0.1 * directions[name] * kept / length, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_reads_its_gradients_norm_once(optimizer: Literal["adamw", "muon"]) -> None:
    trained = {name: nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}
    settings = TrainConfig(max_steps=1, optimizer=optimizer)
    engine = FullEngine(Accelerator(cpu=True), pair_of(trained), settings, accumulation=1)
    for is_first in (True, False):  # the first step of Muon reads the sizes of the rows as well
        for value in trained.values():
            value.grad = torch.ones_like(value)
        if is_first:
            engine.update(1e-3, lambda norm: True)
    with Reads() as reads:
        engine.update(1e-3, lambda norm: True)
    assert reads.count == 1 + (optimizer == "muon")  # and the gain's count of steps, which lies on the CPU


def test_ddp_sends_buffers_as_it_begins_and_never_again() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        two: Any = SimpleNamespace(num_processes=2, process_index=0, prepare_model=DistributedDataParallel)
        pair = make_pair(tiny_teacher("llama"), 16)
        engine = FullEngine(two, pair, TrainConfig(max_steps=1), accumulation=1)
        assert engine.model.modules_buffers  # rotary frequencies
        engine.model.require_forward_param_sync = True
        assert not engine.model.will_sync_module_buffers()
    finally:
        dist.destroy_process_group()
