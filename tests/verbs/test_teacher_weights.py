"""`lrc train` with a held teacher: trained, resumed, converted; refused where it must be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lrc.errors import ConfigError
from lrc.export.convert import read_source
from lrc.models.discovery import discover
from lrc.models.held_teacher import held_weights
from lrc.verbs.convert import convert
from lrc.verbs.teacher_weights import check_teacher_weights, first_place, load_teacher
from lrc.verbs.train import train
from tests.models.family_configs import FAMILY_CONFIGS
from tests.tiny import tiny_recipe

FORMATS = ["int8", "nf4"]


def log_of(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == kind}


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_is_gone_on_with_and_converted(tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"teacher_weights__format": format, "train__max_steps": 4}
    whole = train(tiny_recipe(tmp_path, run=str(tmp_path / "whole"), **changes))
    assert f"in float32, its layers' matrices in {format}: " in capsys.readouterr().err
    half = whole.with_name("checkpoint-2")
    resumed = train(tiny_recipe(tmp_path, run=str(tmp_path / "resumed"), **changes), resume=str(half))
    for name, tensor in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(load_file(resumed / "model.safetensors")[name], tensor, rtol=0, atol=1e-7)
    assert set(load_file(whole / "model.safetensors")) == set(load_file(half / "model.safetensors"))
    capsys.readouterr()
    out = convert(whole, tmp_path / "student")
    assert f"training held the teacher's matrices in {format}" in capsys.readouterr().err
    facts = json.loads((out / "parity.json").read_text())
    assert facts["passed"]
    assert facts["in_memory"]["relative_difference"] < 1e-5  # the teacher's own weights on both sides
    held_out = log_of(tmp_path / "whole", "held_out")
    assert list(held_out) == [0, 1, 2, 3, 4]


def test_the_student_is_made_of_the_teacher_s_own_weights(tmp_path: Path) -> None:
    last = train(tiny_recipe(tmp_path, teacher_weights__format="nf4", train__max_steps=1, train__save_steps=1))
    student = load_file(convert(last, tmp_path / "student") / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    weight = load_file(tmp_path / "teacher" / "model.safetensors")[f"{name}.weight"]
    projection = load_file(last / "model.safetensors")[f"projections.{name}"]
    torch.testing.assert_close(student[f"{name}.weight"], weight @ projection)


def test_a_native_run_has_nothing_to_say(tmp_path: Path) -> None:
    last = train(tiny_recipe(tmp_path, train__max_steps=1, train__save_steps=1))
    assert read_source(last, teacher=None, student=None).notes == ()


def test_a_run_may_go_on_with_another_format(tmp_path: Path) -> None:
    """The trained tensors belong to the teacher, however it is held."""
    start: dict[str, Any] = {"start__basis": "principal"}  # so that there is something left for every step to gain
    first = train(tiny_recipe(tmp_path, teacher_weights__format="int8", train__max_steps=2, **start))
    last = train(tiny_recipe(tmp_path, train__max_steps=4, **start), resume=str(first))
    assert last.name == "checkpoint-4"
    measures = [line["kl"] for line in log_of(tmp_path / "run", "held_out").values()]
    assert len(measures) == 5
    assert measures == sorted(measures, reverse=True)


def test_offload_without_a_gpu_changes_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, offload in (("plain", "none"), ("offloaded", "cpu")):
        train(tiny_recipe(tmp_path, run=str(tmp_path / run), teacher_weights__offload=offload, train__max_steps=2))
    said = capsys.readouterr().err
    assert said.count("note: teacher_weights.offload=cpu changes nothing without a GPU") == 1
    losses = [log_of(tmp_path / run, "train")[2]["loss"] for run in ("plain", "offloaded")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_loaded_teacher_is_frozen_and_held(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, teacher_weights__format="int8")
    said: list[str] = []
    teacher = load_teacher(recipe, tmp_path / "teacher", torch.device("cpu"), said.append)
    assert len(held_weights(teacher)) == 14
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    assert len(said) == 1


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "fsdp2", "zero3"])
def test_main_memory_is_refused_where_the_teacher_is_shared_out(
    tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = tiny_recipe(tmp_path, teacher_weights__offload="cpu", train__strategy=strategy)
    if strategy in ("fsdp2", "zero3"):
        with pytest.raises(ConfigError, match=rf"found the strategy {strategy}.*offload at none.*zero2"):
            train(recipe, dry_run=True)
    else:
        train(recipe, dry_run=True)
    assert not (tmp_path / "run").exists()
    train(tiny_recipe(tmp_path, teacher_weights__format="int8", train__strategy=strategy), dry_run=True)


def test_stacked_experts_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    config = FAMILY_CONFIGS["qwen3_moe"]()
    recipe = tiny_recipe(tmp_path, teacher_weights__format="int8")
    with pytest.raises(ConfigError, match="stacked experts"):
        check_teacher_weights(recipe, config, discover(config))
    check_teacher_weights(tiny_recipe(tmp_path), config, discover(config))


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher_weights\.format.*int4.*native.*int8.*nf4"):
        tiny_recipe(tmp_path, teacher_weights__format="int4")
    with pytest.raises(ConfigError, match=r"unknown key 'teacher_weights\.formt'.*teacher_weights\.format"):
        tiny_recipe(tmp_path, teacher_weights__formt="int8")


@pytest.mark.parametrize(
    ("strategy", "device", "free_share", "expected"),
    [
        ("fsdp2", "cuda", 1.4, "cpu"),
        ("fsdp2", "cuda", 1.6, "cuda"),
        ("ddp", "cuda", 0.1, "cuda"),
        ("fsdp2", "cpu", 0.1, "cpu"),
    ],
)
def test_a_teacher_too_large_for_a_device_waits_in_main_memory_for_fsdp2(
    monkeypatch: pytest.MonkeyPatch, strategy: str, device: str, free_share: float, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free_share * 1000), 10_000))
    assert first_place(1000, strategy, torch.device(device)) == torch.device(expected)
    if strategy == "fsdp2":  # with corrections it takes a whole teacher more
        assert first_place(1000, strategy, torch.device(device), correction="outputs") == torch.device("cpu")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int((free_share + 1) * 1000), 10_000))
        assert first_place(1000, strategy, torch.device(device), correction="outputs") == torch.device(expected)


@pytest.mark.parametrize("format", ["native", *FORMATS])
def test_a_teacher_that_waits_elsewhere_computes_in_its_devices_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    recipe = tiny_recipe(tmp_path, train__compute_dtype="auto", teacher_weights__format=format)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1))
    asked = []
    monkeypatch.setattr(
        "lrc.verbs.teacher_weights.choose_dtype", lambda wanted, device: asked.append(device) or torch.bfloat16
    )
    lines: list[str] = []
    gpu = torch.device("cuda", 0)
    teacher = load_teacher(recipe, Path(recipe.teacher), gpu, lines.append, strategy="fsdp2")
    assert asked == [gpu]
    held = held_weights(teacher).values()
    assert len(held) == (0 if format == "native" else 14)
    found = {(value.device.type, value.dtype) for value in (*teacher.parameters(), *(one.formed() for one in held))}
    assert found == {("cpu", torch.bfloat16)}
    assert "first in main memory" in lines[0]
