"""Checkpoints come back bit for bit, optimiser included; what is damaged, foreign or half-written is never used."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lrc.errors import CheckpointError
from lrc.training import checkpoint
from lrc.training.checkpoint import RunState, checkpoints, find_resume, load_checkpoint, rotate, save_checkpoint

FILES = ["lrc_config.json", "model.safetensors", "optimizer.safetensors", "state.json"]
SHAPES = {"projections.model.embed_tokens": (6, 3), "projections.lm_head": (6, 3), "gains.model.norm.weight": (3,)}
FACTS = {"format": 1, "teacher": "owner/model"}


class Run:
    """Trained tensors with AdamW over them; step `n` has gradients that are a function of `n`."""

    def __init__(self, seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.trained = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
        settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 0.01, "fused": True}
        self.optimizer = torch.optim.AdamW(list(self.trained.values()), **settings)

    def step(self, first: int, last: int) -> "Run":
        for number in range(first, last + 1):
            generator = torch.Generator().manual_seed(100 + number)
            for parameter in self.trained.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.optimizer.step()
        return self

    def save(self, folder: Path, step: int) -> Path:
        state = RunState(step=step, tokens=64 * step, seconds=1.5 * step)
        return save_checkpoint(folder, self.trained, self.optimizer, state, {**FACTS, "step": step})

    def tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}


def assert_bit_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_hold_what_the_formats_page_says(tmp_path: Path) -> None:
    run = Run().step(1, 3)
    folder = run.save(tmp_path / "train", 3)
    assert folder == tmp_path / "train" / "checkpoint-3"
    assert names_in(folder) == FILES
    assert names_in(tmp_path / "train") == ["checkpoint-3"]
    assert_bit_equal(load_file(folder / "model.safetensors"), run.tensors())
    moments = load_file(folder / "optimizer.safetensors")
    assert set(moments) == {f"{key}/{name}" for name in SHAPES for key in ("exp_avg", "exp_avg_sq", "step")}
    assert all(float(moments[f"step/{name}"]) == 3 for name in SHAPES)
    assert json.loads((folder / "state.json").read_text()) == {"step": 3, "tokens": 192, "seconds": 4.5}
    assert json.loads((folder / "lrc_config.json").read_text()) == {**FACTS, "step": 3}


def test_the_steps_after_a_load_are_those_of_a_run_that_went_on(tmp_path: Path) -> None:
    whole = Run().step(1, 3)
    folder = whole.save(tmp_path, 3)
    saved = whole.tensors()
    resumed = Run(seed=9)
    assert load_checkpoint(folder, resumed.trained, resumed.optimizer) == RunState(step=3, tokens=192, seconds=4.5)
    assert_bit_equal(resumed.tensors(), saved)
    for number in (4, 5):
        assert_bit_equal(resumed.step(number, number).tensors(), whole.step(number, number).tensors())
    fresh = Run().step(1, 3)
    fresh.optimizer.state.clear()
    fresh.step(4, 5)
    assert not torch.equal(fresh.trained["projections.lm_head"], whole.trained["projections.lm_head"])


def test_a_loaded_run_saves_the_same_bytes(tmp_path: Path) -> None:
    first = Run().step(1, 3).save(tmp_path / "first", 3)
    resumed = Run(seed=9)
    load_checkpoint(first, resumed.trained, resumed.optimizer)
    second = resumed.save(tmp_path / "second", 3)
    for name in FILES:
        assert (second / name).read_bytes() == (first / name).read_bytes(), name


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    Run(seed=1).step(1, 1).save(tmp_path, 1)
    (tmp_path / ".checkpoint-1.partial").mkdir()
    (tmp_path / ".checkpoint-1.partial" / "stale").write_text("half")
    run = Run(seed=2).step(1, 1)
    folder = run.save(tmp_path, 1)
    assert names_in(tmp_path) == ["checkpoint-1"]
    assert names_in(folder) == FILES
    assert_bit_equal(load_file(folder / "model.safetensors"), run.tensors())


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (SafetensorError("I/O error: File too large (os error 27)"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_a_failed_write_is_explained_and_leaves_every_checkpoint_whole(
    tmp_path: Path, failure: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run().step(1, 3)
    for step in (2, 3):
        run.save(tmp_path, step)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write = checkpoint.save_file

    def fail_at_the_optimizer(tensors: dict[str, Tensor], path: Path, **options: Any) -> None:
        if path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise failure
        write(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", fail_at_the_optimizer)
    with pytest.raises(CheckpointError) as caught:
        run.step(4, 4).save(tmp_path, 3)
    for part in (str(tmp_path / "checkpoint-3"), reason, "--resume auto"):
        assert part in str(caught.value)
    assert ("the disk is full" in str(caught.value)) == (reason == "the disk is full")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names_in(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def place(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "state.json").write_text("{}")


def place_litter(folder: Path) -> list[str]:
    """Put what is no complete checkpoint beside the checkpoints; return the names."""
    for name in (".checkpoint-99.partial", "checkpoint-98.old", "checkpoint-x", "old-checkpoint-97"):
        (folder / name).mkdir(parents=True)
        (folder / name / "state.json").write_text("{}")
    (folder / "checkpoint-96").mkdir()
    (folder / "checkpoint-95").write_text("a file")
    return names_in(folder)


def test_checkpoints_come_in_the_order_of_their_steps_and_are_complete(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "absent") == []
    place_litter(tmp_path)
    assert checkpoints(tmp_path) == []
    place(tmp_path, 10, 9, 100, 2)
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 9, 10, 100)]


def test_auto_resumes_the_newest_complete_checkpoint_if_there_is_one(tmp_path: Path) -> None:
    assert find_resume(tmp_path / "absent", "auto") is None
    place_litter(tmp_path)
    assert find_resume(tmp_path, "auto") is None
    place(tmp_path, 9, 10)
    assert find_resume(tmp_path, "auto") == tmp_path / "checkpoint-10"


def test_a_named_checkpoint_is_taken_wherever_it_lies(tmp_path: Path) -> None:
    place(tmp_path / "other", 4)
    assert find_resume(tmp_path, str(tmp_path / "other" / "checkpoint-4")) == tmp_path / "other" / "checkpoint-4"
    for wrong in (tmp_path / "other", tmp_path / "other" / "checkpoint-5"):
        with pytest.raises(CheckpointError, match=r"or be 'auto', but .* has no state\.json"):
            find_resume(tmp_path, str(wrong))


@pytest.mark.parametrize(("keep", "kept"), [(None, [2, 9, 10, 100]), (1, [100]), (2, [10, 100]), (9, [2, 9, 10, 100])])
def test_rotation_keeps_the_newest_and_touches_nothing_else(tmp_path: Path, keep: int | None, kept: list[int]) -> None:
    litter = place_litter(tmp_path)
    place(tmp_path, 10, 9, 100, 2)
    rotate(tmp_path, keep)
    assert names_in(tmp_path) == sorted([*litter, *(f"checkpoint-{step}" for step in kept)])


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({name: SHAPES[name] for name in list(SHAPES)[1:]}, ["1 tensors differ", "projections.model.embed_tokens"]),
        ({**SHAPES, "gains.more": (3,), "gains.most": (3,)}, ["2 tensors differ", "gains.more"]),
        ({**SHAPES, "projections.lm_head": (6, 4)}, ["projections.lm_head is [6, 3], not [6, 4]"]),
    ],
)
def test_another_students_checkpoint_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], said: list[str]
) -> None:
    folder = Run().step(1, 1).save(tmp_path, 1)
    other = Run(shapes=shapes)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, other.trained, other.optimizer)
    for part in [str(folder), "another student", *said]:
        assert part in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("spoil", [cut, lambda path: path.write_bytes(b""), Path.unlink], ids=["cut", "empty", "gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, spoil: Callable[[Path], Any]) -> None:
    folder = Run().step(1, 1).save(tmp_path, 1)
    spoil(folder / name)
    other = Run()
    with pytest.raises(CheckpointError, match="can't be read") as caught:
        load_checkpoint(folder, other.trained, other.optimizer)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ['{"step": 1, "tokens": 2}', '{"step": 1, "tokens": 2, "seconds": 3, "x": 4}', "[1]"])
def test_a_state_with_other_keys_is_refused(tmp_path: Path, text: str) -> None:
    run = Run().step(1, 1)
    folder = run.save(tmp_path, 1)
    (folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="can't be read"):
        load_checkpoint(folder, run.trained, run.optimizer)


@pytest.mark.parametrize("damage", ["no moments", "one is missing", "another shape", "another student's"])
def test_optimiser_state_that_is_not_the_runs_is_refused(tmp_path: Path, damage: str) -> None:
    folder = Run().step(1, 1).save(tmp_path, 1)
    moments = load_file(folder / "optimizer.safetensors")
    if damage == "no moments":
        moments = {"nothing": torch.zeros(1)}
    elif damage == "one is missing":
        del moments["exp_avg/projections.lm_head"]
    elif damage == "another shape":
        moments["exp_avg/projections.lm_head"] = torch.zeros(6, 4)
    else:
        moments = {name.replace("lm_head", "model.layers.0.mlp.up_proj"): value for name, value in moments.items()}
    save_file(moments, folder / "optimizer.safetensors")
    other = Run()
    with pytest.raises(CheckpointError):
        load_checkpoint(folder, other.trained, other.optimizer)
