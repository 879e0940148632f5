"""DeepSpeed's engine beside what `test_strategies.py` shows of it on two ranks. `meta` plays the GPU."""

from types import SimpleNamespace

import torch
from torch import Tensor

from lrc.training.zero import ZeroEngine


def test_zero_counts_beside_its_flat_partitions() -> None:
    flat = torch.empty(28, device="meta")
    optimizer = torch.optim.AdamW([flat], fused=True)
    engine = ZeroEngine.__new__(ZeroEngine)
    engine.is_sharded = True
    engine.engine = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer, fp32_partitioned_groups_flat=[flat]))
    count = torch.ones(())
    engine._make_states({"step/gain": count})
    state: dict[str, Tensor] = optimizer.state[flat]
    assert {value.device.type for value in state.values()} == {"meta"}
