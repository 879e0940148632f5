"""Corrections on one process and on two: fitted by the first, the same on all, kept whole or in pieces, never moved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lrc.verbs.convert import convert
from tests.tiny import tiny_recipe
from tests.training.test_strategies import assert_near, checkpoint, job, losses_of, run_jobs, tensors_of

pytestmark = pytest.mark.slow

STEPS, HALF = 8, 4
CORRECTED: dict[str, Any] = {
    "student": {"hidden_size": 16, "correction": "mlp"},
    "start__method": "calibrated",
    "train__max_steps": STEPS,
    "train__save_steps": HALF,
}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "fsdp2": ("fsdp2", {}),
    "fsdp2-once": ("fsdp2", {"train__merge": "step"}),
    "compiled": ("fsdp2", {"train__compile": True}),
    "selective": ("one", {"train__activation_checkpointing": "selective"}),
    "micro": ("one", {"train__merge": "micro_batch"}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corrections")
    tiny_recipe(root)
    jobs = [job(root, "one", "one", **CORRECTED)]
    jobs += [job(root, name, strategy, **CORRECTED, **more) for name, (strategy, more) in WAYS.items()]
    jobs += [
        job(root, "fsdp2-to-one", "one", resume=str(checkpoint(root / "fsdp2", HALF)), **CORRECTED),
        job(root, "one-to-fsdp2", "fsdp2", resume=str(checkpoint(root / "one", HALF)), **CORRECTED),
    ]
    run_jobs(root, jobs)
    return root


@pytest.mark.parametrize("name", [*WAYS, "fsdp2-to-one", "one-to-fsdp2"])
def test_every_way_trains_alike(root: Path, name: str) -> None:
    assert_near(losses_of(root / name), losses_of(root / "one"), 1e-5)
    assert max(losses_of(root / name)) == STEPS


@pytest.mark.parametrize("name", [*WAYS, "fsdp2-to-one", "one-to-fsdp2"])
def test_corrections_are_those_of_the_start_to_the_end(root: Path, name: str) -> None:
    expected = load_file(checkpoint(root / "one", HALF) / "model.safetensors")
    found = tensors_of(checkpoint(root / name, STEPS), "model.safetensors")
    assert found.keys() == expected.keys()
    names = [key for key in found if key.startswith("corrections.")]
    assert len(names) == 2 * 3
    for key in names:
        assert bool(found[key].any())
        assert torch.equal(found[key], expected[key])
    assert not any(
        key.partition("/")[2] in names for key in tensors_of(checkpoint(root / name, STEPS), "optimizer.safetensors")
    )


def test_a_checkpoint_in_pieces_converts_to_the_same_student(root: Path) -> None:
    students = []
    for name in ("one", "fsdp2"):
        convert(checkpoint(root / name, STEPS), root / f"student-{name}")
        students.append(load_file(root / f"student-{name}" / "model.safetensors"))
    expected, found = students
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
