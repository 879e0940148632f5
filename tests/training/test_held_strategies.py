"""A teacher in 8 or 4 bit trains the same student under every strategy, and FSDP2 and ZeRO-3 share its bytes out."""

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lrc.models.discovery import discover
from lrc.models.held_teacher import held_matrices_of
from lrc.models.teacher import load_config
from lrc.models.weight_formats import packed_bytes
from lrc.verbs.convert import convert
from tests.tiny import teacher_folder, tiny_recipe, write_rows
from tests.training.test_strategies import (
    assert_near,
    checkpoint,
    job,
    lines_of,
    losses_of,
    run_jobs,
    runnable,
    tensors_of,
)

pytestmark = pytest.mark.slow

STEPS = 6
RANKS = 2
RUNS = runnable(
    *(f"int8-{strategy}" for strategy in ("ddp", "fsdp2", "fsdp2-once", "zero1", "zero2", "zero3")),
    *(f"nf4-{strategy}" for strategy in ("fsdp2", "fsdp2-once", "zero2", "zero3")),
)
SHARING = runnable("int8-fsdp2", "int8-zero3", "nf4-fsdp2", "nf4-zero3")
LOW = runnable("low-fsdp2", "low-zero3")
ITEM_BYTES = {"torch.int8": 1, "torch.uint8": 1, "torch.float32": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("held")
    tiny_recipe(root)
    write_rows(root / "train.jsonl", ragged=True)
    steps = {"train__max_steps": STEPS, "train__save_steps": STEPS}
    # pieces that two ranks can't share evenly
    odd = {"teacher": str(teacher_folder(root / "odd", "qwen2", hidden_size=33, head_dim=8))}
    settings: dict[str, dict[str, Any]] = {
        "int8": {"teacher_weights__format": "int8"},
        "nf4": {"teacher_weights__format": "nf4", "student__hidden_size": 15, **odd},
        "low": {"teacher_weights__format": "nf4", "train__compute_dtype": "bfloat16"},
    }
    settings["nf4"]["train__activation_checkpointing"] = True
    jobs = []
    for name in (*(f"{kind}-one" for kind in settings), *RUNS, *LOW):
        kind, strategy, *once = name.split("-")
        merge = {"train__merge": "step" if once else "micro_batch"}
        described = job(root, name, strategy, **steps, **settings[kind], **merge)
        jobs.append({**described, "shares": str(root / f"shares-{name}") if name in SHARING else None})
    run_jobs(root, jobs)
    return root


def one_of(name: str) -> str:
    return f"{name.partition('-')[0]}-one"


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_norms_are_those_of_one_process(root: Path, name: str) -> None:
    found = losses_of(root / name)
    assert list(found) == list(range(1, STEPS + 1))
    assert_near(found, losses_of(root / one_of(name)), 1e-5)
    norms, expected = (
        {step: line["gradient_norm"] for step, line in lines_of(root / run, "train").items()}
        for run in (name, one_of(name))
    )
    assert norms == pytest.approx(expected, rel=1e-4)
    kl, expected_kl = (lines_of(root / run, "held_out")[STEPS]["kl"] for run in (name, one_of(name)))
    assert kl == pytest.approx(expected_kl, abs=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_hold_nothing_of_the_teacher_and_convert_to_the_same_student(root: Path, name: str) -> None:
    found, expected = (tensors_of(checkpoint(root / run, STEPS), "model.safetensors") for run in (name, one_of(name)))
    assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
        key: (value.shape, value.dtype) for key, value in expected.items()
    }
    students = []
    for run in (one_of(name), name):
        out = root / f"student-{run}"
        if not out.exists():
            convert(checkpoint(root / run, STEPS), out)
        students.append(load_file(out / "model.safetensors"))
    assert set(students[0]) == set(students[1])
    for key, tensor in students[0].items():
        torch.testing.assert_close(students[1][key], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHARING)
def test_each_rank_keeps_its_share_of_the_packed_bytes(root: Path, name: str) -> None:
    format, _, strategy = name.partition("-")
    config = load_config(str(root / ("odd" if format == "nf4" else "teacher")))
    names = [matrix for layer in held_matrices_of(config, discover(config)) for matrix in layer]
    weights = load_file((root / ("odd" if format == "nf4" else "teacher")) / "model.safetensors")
    whole = sum(packed_bytes(tuple(weights[matrix].shape), torch.float32, format) for matrix in names)  # type: ignore[arg-type]
    uneven = 0
    for rank in range(RANKS):
        shares = json.loads((root / f"shares-{name}-{rank}.json").read_text())
        assert shares["store"] == 0
        assert len(shares["pieces"]) == 2 * len(names)
        assert {dtype for dtype, _, _ in shares["pieces"]} == {
            "torch.int8" if format == "int8" else "torch.uint8",
            "torch.float32",
        }
        assert sum(ITEM_BYTES[dtype] * prod(shape) for dtype, shape, _ in shares["pieces"]) == whole
        for dtype, shape, here in shares["pieces"]:
            parts, size = (shape[0], prod(shape[1:])) if strategy == "fsdp2" else (prod(shape), 1)
            assert here == -(-parts // RANKS) * size * ITEM_BYTES[dtype]
            uneven += parts % RANKS
        assert 0.5 * whole <= sum(here for _, _, here in shares["pieces"]) < 0.55 * whole
    assert uneven or format == "int8"


@pytest.mark.parametrize("name", LOW)
def test_codes_bfloat16_scales_and_float32_projections_are_sharded_together(root: Path, name: str) -> None:
    found = losses_of(root / name)
    assert len(found) == STEPS
    assert found == pytest.approx(losses_of(root / "low-one"), rel=5e-3)
    tensors = tensors_of(checkpoint(root / name, STEPS), "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
