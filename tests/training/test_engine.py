"""Where loaded optimiser state lies: beside the parameter, as the optimiser itself makes it. `meta` plays the GPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from lrc.config import TrainConfig
from lrc.models.moments import MOMENTS
from lrc.models.stored_tensors import StoredTensors
from lrc.training.checkpoint import Saved
from lrc.training.engine import FullEngine
from lrc.training.run_state import RunState

SHAPES = {"projection": (6, 4), "gain": (4,)}


def trained_on_meta() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.empty(shape, device="meta")) for name, shape in SHAPES.items()}


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
    pair: Any = SimpleNamespace(
        trained=lambda: trained,
        stored=lambda: trained,
        tables=frozenset,
        merged_under=lambda name: None,
        compute_dtype=torch.float32,
    )
    engine = FullEngine(Accelerator(cpu=True), pair, TrainConfig(max_steps=1, optimizer=optimizer), accumulation=1)
    engine.load(saved_moments(tmp_path, engine.moment_shapes))
    states = {name: engine.optimizer.state[value] for name, value in trained.items()}
    assert states["gain"]["step"].device.type == step
    assert {value.device.type for state in states.values() for key, value in state.items() if key != "step"} == {"meta"}
