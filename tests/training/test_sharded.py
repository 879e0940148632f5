"""FSDP2's engine beside what `test_strategies.py` shows of it on two ranks. `meta` plays the GPU."""

from typing import Literal

import pytest

from lrc.config import TrainConfig
from lrc.training.optimizer import make_optimizer, moment_shapes
from lrc.training.sharded import ShardedEngine
from tests.training.test_engine import saved_moments, trained_on_meta


@pytest.mark.parametrize(("optimizer", "step"), [("adamw", "meta"), ("muon", "cpu")])
def test_sharded_step_counts_lie_where_the_optimiser_counts(
    optimizer: Literal["adamw", "muon"], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ShardedEngine.__new__(ShardedEngine)
    engine.settings = TrainConfig(max_steps=1, optimizer=optimizer)
    engine.trained = engine.stored = trained_on_meta()
    engine.moment_shapes = moment_shapes({name: value.shape for name, value in engine.trained.items()}, engine.settings)
    engine.optimizer = make_optimizer(engine.trained.values(), engine.settings)
    monkeypatch.setattr(engine, "_sharded", lambda whole, like: whole.to(like.device))
    engine.load(saved_moments(engine.moment_shapes))
    states = {name: engine.optimizer.state[value] for name, value in engine.trained.items()}
    assert states["gain"]["step"].device.type == step
    assert {value.device.type for state in states.values() for key, value in state.items() if key != "step"} == {"meta"}
