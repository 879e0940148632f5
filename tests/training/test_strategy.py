"""What launcher and recipe ask for is understood, contradictions are refused, and every configuration is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lrc.config import TrainConfig
from lrc.errors import ConfigError
from lrc.training.strategy import choose_strategy, join_processes, launched_strategy
from lrc.verbs.published_launch import read_launch

CONFIGS = Path(__file__).parents[2] / "configs"
EXPECTED = {
    "accel_cpu.yaml": None,
    "accel_1gpu.yaml": None,
    "accel_ddp.yaml": None,
    "accel_fsdp.yaml": "fsdp2",
    "accel_multinode.yaml": "fsdp2",
    "accel_ds.yaml": "zero2",
    "accel_ds_4gpus.yaml": "zero2",
    "accel_ds_8h800.yaml": "zero2",
    "accel_ds_8h800_gas1.yaml": "zero2",
    "accel_ds_8h800_gas1_maxgrad0.5.yaml": "zero2",
    "accel_ds_8h800_gas1_zero3.yaml": "zero3",
    "accel_ds_8h800_gas2.yaml": "zero2",
    "accel_ds_8h800_gas3.yaml": "zero2",
    "accel_ds_8h800_gas4.yaml": "zero2",
    "accel_ds_zero1.yaml": "zero1",
    "accel_ds_zero3.yaml": "zero3",
}


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def environment_of(path: Path) -> dict[str, str]:
    """Let accelerate itself turn a configuration into the environment of the processes that it starts."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""  # the launch command sets it later
        _, environment = prepare_deepspeed_cmd_env(arguments)
    elif arguments.num_processes and arguments.num_processes > 1:
        environment = prepare_multi_gpu_env(arguments)
    else:
        _, environment = prepare_simple_launcher_cmd_env(arguments)
    result: dict[str, str] = environment
    return result


@pytest.mark.parametrize("name", EXPECTED)
def test_every_configuration_asks_for_its_strategy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(variable, raising=False)
    assert launched_strategy(environment_of(CONFIGS / name)) == EXPECTED[name]


def test_every_configuration_is_known_here() -> None:
    assert {path.name for path in CONFIGS.glob("accel*.yaml")} == set(EXPECTED)
    processes = {name: yaml.safe_load((CONFIGS / name).read_text())["num_processes"] for name in EXPECTED}
    assert {name: count for name, count in processes.items() if count != 8} == {
        "accel_cpu.yaml": 1,
        "accel_1gpu.yaml": 1,
        "accel_ds_4gpus.yaml": 4,
        "accel_multinode.yaml": 16,
    }


@pytest.mark.parametrize(
    ("name", "accumulation", "clipping"),
    [
        ("4gpus", 2, 1.0),
        ("8h800", 2, 1.0),
        ("8h800_gas1", 1, 1.0),
        ("8h800_gas1_maxgrad0.5", 1, 0.5),
        ("8h800_gas1_zero3", 1, 1.0),
        ("8h800_gas2", 2, 1.0),
        ("8h800_gas3", 3, 1.0),
        ("8h800_gas4", 4, 1.0),
    ],
)
def test_published_configurations_fix_what_the_command_must_say(
    name: str, accumulation: float, clipping: float
) -> None:
    launch = read_launch(environment_of(CONFIGS / f"accel_ds_{name}.yaml"))
    assert (launch.gradient_accumulation_steps, launch.max_grad_norm) == (accumulation, clipping)


@pytest.mark.parametrize(("key", "value"), [("fsdp_offload_params", True), ("fsdp_reshard_after_forward", False)])
def test_fsdp_settings_that_are_not_done_are_refused(tmp_path: Path, key: str, value: bool) -> None:
    config = yaml.safe_load((CONFIGS / "accel_fsdp.yaml").read_text())
    config["fsdp_config"][key] = value
    (tmp_path / "accel.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=f"{key} must be {str(not value).lower()}"):
        launched_strategy(environment_of(tmp_path / "accel.yaml"))


@pytest.mark.parametrize(
    ("environment", "strategy", "expected"),
    [
        ({}, "auto", "ddp"),
        ({"WORLD_SIZE": "2"}, "auto", "ddp"),
        ({"WORLD_SIZE": "2"}, "zero3", "zero3"),
        ({"WORLD_SIZE": "1"}, "fsdp2", "ddp"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "auto", "fsdp2"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2", "fsdp2"),
        (
            {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
            "auto",
            "zero1",
        ),
    ],
)
def test_the_strategy_is_the_launchers_or_the_recipes(
    environment: dict[str, str], strategy: Any, expected: str
) -> None:
    assert choose_strategy(TrainConfig(max_steps=1, strategy=strategy), environment) == expected


@pytest.mark.parametrize(
    ("environment", "strategy", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "auto", "of version 2, found 1"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"},
            "auto",
            "must be 1, 2 or 3, found 0",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero2", "asks for zero3"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "ddp", "train.strategy is ddp"),
        ({**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, "auto", "fsdp_offload_params must be false .*, found true"),
        ({**FSDP2, "FSDP_RESHARD_AFTER_FORWARD": "false"}, "auto", "fsdp_reshard_after_forward must be true"),
    ],
)
def test_what_can_not_be_is_refused(environment: dict[str, str], strategy: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_strategy(TrainConfig(max_steps=1, strategy=strategy), {"WORLD_SIZE": "2", **environment})


def test_the_stage_is_read_from_a_file_of_deepspeed_too(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json")}
    assert launched_strategy(environment) == "zero3"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"zero_optimization": 3}'])
def test_a_file_of_deepspeed_that_can_not_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content)
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    with pytest.raises(ConfigError, match=r"must be a JSON file with zero_optimization\.stage in it, but .*ds\.json"):
        launched_strategy(environment)


def test_deepspeed_that_accelerate_would_drop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="drops DeepSpeed, without a word"):
        join_processes(torch.device("cpu"), "zero2")


def test_muon_is_refused_where_gradients_are_sharded_flat() -> None:
    settings = TrainConfig(max_steps=1, strategy="zero2", optimizer="muon")
    with pytest.raises(ConfigError, match=r"muon needs each gradient as a matrix.*zero2"):
        choose_strategy(settings, {"WORLD_SIZE": "2"})
    assert choose_strategy(settings, {"WORLD_SIZE": "1"}) == "ddp"
