"""FSDP2's engine beside what `test_strategies.py` shows of it on two ranks. `meta` plays the GPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch

from lrc.config import TrainConfig
from lrc.models.moments import moment_shapes
from lrc.training.optimizer import make_optimizer
from lrc.training.sharded import ShardedEngine
from tests.training.test_engine import saved_moments, trained_on_meta


@pytest.mark.parametrize(("optimizer", "step"), [("adamw", "meta"), ("muon", "cpu")])
def test_sharded_step_counts_lie_where_the_optimiser_counts(
    tmp_path: Path, optimizer: Literal["adamw", "muon"], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ShardedEngine.__new__(ShardedEngine)
    engine.settings = TrainConfig(max_steps=1, optimizer=optimizer)
    engine.trained = engine.stored = trained_on_meta()
    engine.moment_shapes = moment_shapes({name: value.shape for name, value in engine.trained.items()}, optimizer)
    engine.optimizer = make_optimizer(engine.trained.values(), engine.settings)
    monkeypatch.setattr(engine, "_read_rows", lambda tensors, name, like: tensors[name].to(like.device))
    engine.load(saved_moments(tmp_path, engine.moment_shapes))
    states = {name: engine.optimizer.state[value] for name, value in engine.trained.items()}
    assert states["gain"]["step"].device.type == step
    assert {value.device.type for state in states.values() for key, value in state.items() if key != "step"} == {"meta"}


@pytest.mark.parametrize(("rows", "ranks"), [(8, 4), (7, 2), (5, 4), (3, 4), (1, 2)])
def test_rows_are_shared_out_as_torch_chunks_them(rows: int, ranks: int) -> None:
    whole = torch.arange(rows)
    chunks = [*torch.chunk(whole, ranks), *[whole[:0]] * ranks][:ranks]
    engine = ShardedEngine.__new__(ShardedEngine)
    for rank, chunk in enumerate(chunks):
        engine.accelerator = SimpleNamespace(num_processes=ranks, process_index=rank)  # type: ignore[assignment]
        first, last = engine._rows(torch.Size([rows, 3]))
        assert torch.equal(whole[first:last], chunk)
