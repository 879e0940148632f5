"""What a published command learns from its launcher, and what the processes of one run must agree on.

Read from the environment that `accelerate launch` and `torchrun` make. Nothing here imports torch or accelerate
before a command line has been found good.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from lrc.training.launch_environment import is_true, launched_rank, num_launched


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a translation needs to know about its process, beside the flags."""

    time: str
    """Local time as `YYYY-mm-dd_HH-MM-SS`, the name of a new run folder."""
    wants_cpu: bool = False
    """Whether the launcher asked for the CPU (`accelerate launch --cpu`)."""
    has_cuda: bool = False
    """Whether torch finds a CUDA device."""
    num_processes: int = 1
    rank: int = 0
    gradient_accumulation_steps: float | None = None
    """Accumulation that the launcher's DeepSpeed configuration fixes."""
    max_grad_norm: float | None = None
    """Clipping that the launcher's DeepSpeed configuration fixes."""


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Read the launcher's settings from the environment, the clock and torch."""
    wants_cpu = is_true(environment.get("ACCELERATE_USE_CPU", ""))
    uses_deepspeed = is_true(environment.get("ACCELERATE_USE_DEEPSPEED", ""))
    return Launch(
        time=time.strftime("%Y-%m-%d_%H-%M-%S"),
        wants_cpu=wants_cpu,
        has_cuda=not wants_cpu and _finds_cuda(),
        num_processes=num_launched(environment),
        rank=launched_rank(environment),
        gradient_accumulation_steps=(
            _number(environment, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS") if uses_deepspeed else None
        ),
        max_grad_norm=_number(environment, "ACCELERATE_GRADIENT_CLIPPING") if uses_deepspeed else None,
    )


def agree_on_run(run: str, launch: Launch) -> str:
    """Return rank 0's run folder on every process; the clocks of the others may be a second off.

    Raises:
        ConfigError: The launcher started several processes that do not see each other.
    """
    if launch.num_processes == 1:
        return run
    import torch
    from accelerate.utils import broadcast_object_list

    from lrc.training.strategy import join_processes, launched_strategy

    join_processes(torch.device("cuda" if launch.has_cuda else "cpu"), launched_strategy(os.environ) or "ddp")
    shared = [run]
    broadcast_object_list(shared)
    return shared[0]


def _finds_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _number(environment: Mapping[str, str], name: str) -> float | None:
    """Return a numeric setting; DeepSpeed's `auto` and `none` fix nothing."""
    text = environment.get(name, "")
    return float(text) if text.replace(".", "", 1).isdigit() else None
