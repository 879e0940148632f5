"""FSDP2's engine beside what `test_strategies.py` shows of it on two ranks. `meta` plays the GPU."""

import pytest
import torch

from lrc.training.sharded import ShardedEngine
from tests.training.test_engine import ADAMW_SHAPES, saved_moments, trained_on_meta


def test_sharded_step_counts_lie_beside_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ShardedEngine.__new__(ShardedEngine)
    engine.trained = engine.stored = trained_on_meta()
    engine.optimizer = torch.optim.AdamW(engine.trained.values(), fused=True)
    monkeypatch.setattr(engine, "_sharded", lambda whole, like: whole.to(like.device))
    engine.load(saved_moments(ADAMW_SHAPES))
    states = [engine.optimizer.state[value] for value in engine.trained.values()]
    assert {value.device.type for state in states for value in state.values()} == {"meta"}
