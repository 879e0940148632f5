"""What the tests measure the tiny shape with: one round on the CPU, nothing beside ours."""

from typing import Any

import torch

from benchmarks.speed.one_shape import Settings


def tiny_settings(**more: Any) -> Settings:
    """Make the settings; `more` adds to them."""
    return Settings(
        dtype=torch.float32,
        device=torch.device("cpu"),
        accumulations=[1],
        rounds=1,
        with_plain=False,
        optimizer="adamw",
        **more,
    )
