"""How several processes share the work: what the launcher and the recipe ask for, joined and checked at the start.

The launcher speaks through its environment (`accelerate launch --config_file`), the recipe through `train.strategy`,
which serves `torchrun` and Slurm. A launcher and an accelerate that do not understand each other train to the end as
independent processes, so world size and strategy are asserted before anything is loaded.
"""

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, GradientAccumulationPlugin
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lrc.config import TrainConfig
from lrc.errors import ConfigError
from lrc.training.launch_environment import is_true, num_launched

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
SHARING = ("fsdp2", "zero3")
"""Strategies that share the weights out, the teacher's too."""
TIMEOUT_HOURS = {"fsdp2": 12}
"""How long ranks wait for each other, where it isn't `USUAL_HOURS`: under FSDP2 the first one may have to compute the
start of a large teacher on the CPU."""
USUAL_HOURS = 2
"""The first rank calibrates and measures alone; what hangs in training should end sooner than that."""


def launched_strategy(environment: Mapping[str, str]) -> str | None:
    """Read what the launcher's configuration asks for; None: nothing in particular.

    Raises:
        ConfigError: It asks for what is not supported.
    """
    if is_true(environment.get("ACCELERATE_USE_DEEPSPEED", "")):
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if file.lower() != "none":
            stage = _stage_in(file)
        if f"zero{stage}" not in ZERO_STAGES:
            raise ConfigError(f"DeepSpeed's ZeRO stage must be 1, 2 or 3, found {stage}. Use plain DDP instead of 0.")
        return f"zero{stage}"
    if is_true(environment.get("ACCELERATE_USE_FSDP", "")):
        version = environment.get("FSDP_VERSION", "1")
        if version != "2":
            raise ConfigError(
                f"FSDP must be of version 2, found {version}. Write fsdp_version: 2 in the launcher's configuration, "
                "as in configs/accel_fsdp.yaml."
            )
        _refuse_other_sharding(environment)
        return "fsdp2"
    return None


def _stage_in(file: str) -> str:
    """Read the ZeRO stage of a configuration file of DeepSpeed; a file that names none shards nothing."""
    try:
        return str(json.loads(Path(file).read_text()).get("zero_optimization", {}).get("stage", 0))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"DeepSpeed's configuration must be a JSON file with zero_optimization.stage in it, but {file} can't be "
            f"read as one: {error}. Mend deepspeed_config_file in the launcher's configuration."
        ) from error


def _refuse_other_sharding(environment: Mapping[str, str]) -> None:
    """Refuse what would change FSDP2's memory or traffic and is not done here."""
    settings = (("offload_params", False), ("reshard_after_forward", True))
    for name, done in settings:
        found = is_true(environment.get(f"FSDP_{name.upper()}", str(done)))
        if found != done:
            raise ConfigError(
                f"fsdp_{name} must be {str(done).lower()} in the launcher's configuration, found {str(found).lower()}: "
                "weights stay on the GPU and are sharded again after each forward pass (lrc/training/sharded.py). "
                "Less memory takes a teacher in 8 or 4 bit, teacher_weights.format in the recipe."
            )


def choose_strategy(settings: TrainConfig, environment: Mapping[str, str]) -> str:
    """Settle on `ddp`, `fsdp2`, `zero1`, `zero2` or `zero3`; one process has nothing to share, it is `ddp`.

    Raises:
        ConfigError: Launcher and recipe contradict each other.
    """
    launched = launched_strategy(environment)
    if num_launched(environment) == 1:
        return "ddp"
    strategy = launched or "ddp" if settings.strategy == "auto" else settings.strategy
    if launched not in (None, strategy):
        raise ConfigError(
            f"train.strategy is {strategy}, but the launcher's configuration asks for {launched}. Drop one."
        )
    if settings.optimizer == "muon" and strategy in ZERO_STAGES:
        raise ConfigError(
            f"train.optimizer=muon needs each gradient as a matrix, found the strategy {strategy}, which shards it "
            "flat. Take train.strategy=fsdp2 or ddp, or train.optimizer=adamw."
        )
    return strategy


def join_processes(device: torch.device, strategy: str) -> PartialState:
    """Join the processes that the launcher started; in a second call and in one process nothing happens.

    Raises:
        ConfigError: They don't see each other.
    """
    launched = num_launched(os.environ)
    on_cpu = device.type == "cpu"
    timeout = timedelta(hours=TIMEOUT_HOURS.get(strategy, USUAL_HOURS))
    options: dict[str, Any] = {} if launched == 1 else {"timeout": timeout}
    if strategy in ZERO_STAGES:
        _prepare_deepspeed(on_cpu)
        state = PartialState(cpu=False, **options, **({"backend": "gloo"} if on_cpu else {}))
    else:
        state = PartialState(cpu=on_cpu, **options)
    if state.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched but accelerate joins {state.num_processes}: each would train "
            "alone. On a CPU use torchrun, or accelerate launch --multi_gpu with ACCELERATE_USE_CPU=true."
        )
    return state


def _prepare_deepspeed(on_cpu: bool) -> None:
    try:
        import deepspeed.ops
    except ImportError as error:
        raise ConfigError(
            f"DeepSpeed's ZeRO needs the package deepspeed: {error}. Install it, or use FSDP2."
        ) from error
    if on_cpu:
        if is_true(os.environ.get("ACCELERATE_USE_CPU", "")):
            raise ConfigError(
                "accelerate drops DeepSpeed, without a word, where it is told to use the CPU (use_cpu: true, --cpu, "
                "ACCELERATE_USE_CPU). Leave that out: on a machine without a GPU the CPU is used anyway."
            )
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled, for minutes
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"


def make_distributed(strategy: str, device: torch.device, options: dict[str, Any]) -> Accelerator:
    """Make the accelerator of a strategy and check that it is one; `options` are the accelerator's other arguments.

    Raises:
        ConfigError: The processes don't see each other, or accelerate has made something else of the strategy.
    """
    stage = ZERO_STAGES.get(strategy)
    if stage is None:
        # the engines shard by themselves; accelerate's own ways would get in between
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
            os.environ.pop(name, None)
    is_launched = launched_strategy(os.environ) == strategy
    join_processes(device, strategy)
    # the loop accumulates; accelerate is not to divide, whatever the launcher's configuration says
    options = {**options, "gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=1)}
    if stage is None:
        accelerator = Accelerator(cpu=device.type == "cpu", **options)
    else:
        plugin = None if is_launched else DeepSpeedPlugin(zero_stage=stage)
        accelerator = Accelerator(deepspeed_plugin=plugin, **options)
        # else transformers partitions every model that it builds from here on, also the tiny ones of the checks; the
        # engine partitions the pair when it is filled
        unset_hf_deepspeed_config()
    found = accelerator.distributed_type
    if (found == DistributedType.DEEPSPEED) != (stage is not None):
        raise ConfigError(
            f"The strategy {strategy} was asked for, but accelerate runs {found.value}. Start it with a configuration "
            "of configs/ or with torchrun and train.strategy."
        )
    return accelerator
