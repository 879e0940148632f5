"""Checkpoints come back bit for bit, optimiser included; what is damaged, foreign or half-written is never used."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lrc.config import TrainConfig
from lrc.data.folder_hash import find_damage, write_sums
from lrc.errors import CheckpointError
from lrc.training import checkpoint
from lrc.training.checkpoint import clear_drafts, read_checkpoint, remove_checkpoint, save_checkpoint
from lrc.training.checkpoint_list import checkpoints, find_resume, step_of
from lrc.training.engine import FullEngine
from lrc.training.run_state import RunState

FILES = ["SHA256SUMS", "lrc_config.json", "model.safetensors", "optimizer.safetensors", "state.json"]
SHAPES = {"projections.model.embed_tokens": (6, 3), "projections.lm_head": (6, 3), "gains.model.norm.weight": (3,)}
FACTS = {"format": 1, "teacher": "owner/model"}


def state_at(step: int) -> RunState:
    return RunState(step=step, tokens=64 * step, seconds=1.5 * step, sequences_per_step=8)


class Pair(torch.nn.Module):
    """Trained tensors, all that an engine asks a pair for."""

    compute_dtype = torch.float32

    def __init__(self, seed: int, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        return self.tensors

    stored = trained

    def tables(self) -> frozenset[str]:
        return frozenset()


class Run:
    """An engine; step `n` has gradients that are a function of `n`."""

    def __init__(self, seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        pair: Any = Pair(seed, shapes)
        self.accelerator: Any = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)
        self.trained = pair.trained()
        settings = TrainConfig(max_steps=9, learning_rate=1e-2, weight_decay=0.01, max_grad_norm=1e9)
        self.engine = FullEngine(self.accelerator, pair, settings, accumulation=1)

    def step(self, first: int, last: int) -> "Run":
        for number in range(first, last + 1):
            generator = torch.Generator().manual_seed(100 + number)
            for parameter in self.trained.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.engine.update(1e-2, lambda norm: True)
        return self

    def save(self, folder: Path, step: int) -> Path:
        facts = {**FACTS, "step": step}
        return save_checkpoint(folder, self.engine.tensors(), state_at(step), facts, self.accelerator)

    def load(self, folder: Path) -> RunState:
        assert find_resume(folder.parent, str(folder), print) == folder
        saved = read_checkpoint(folder, self.engine.shapes, self.engine.moment_shapes)
        self.engine.load(saved)
        return saved.state

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
    assert json.loads((folder / "state.json").read_text()) == {
        "step": 3,
        "tokens": 192,
        "seconds": 4.5,
        "sequences_per_step": 8,
        "held_out_kl": None,
        "skipped_batches": [],
        "gradient_norms": [],
        "objectives": [],
    }
    assert find_damage(folder) is None
    assert {path.stat().st_mode & 0o044 for path in folder.iterdir()} == {0o044}
    assert json.loads((folder / "lrc_config.json").read_text()) == {**FACTS, "step": 3}


def test_the_steps_after_a_load_are_those_of_a_run_that_went_on(tmp_path: Path) -> None:
    whole = Run().step(1, 3)
    folder = whole.save(tmp_path, 3)
    saved = whole.tensors()
    resumed = Run(seed=9)
    assert resumed.load(folder) == state_at(3)
    assert_bit_equal(resumed.tensors(), saved)
    for number in (4, 5):
        assert_bit_equal(resumed.step(number, number).tensors(), whole.step(number, number).tensors())
    fresh = Run().step(1, 3)
    fresh.engine.optimizer.state.clear()
    fresh.step(4, 5)
    assert not torch.equal(fresh.trained["projections.lm_head"], whole.trained["projections.lm_head"])


def test_a_loaded_run_saves_the_same_bytes(tmp_path: Path) -> None:
    first = Run().step(1, 3).save(tmp_path / "first", 3)
    resumed = Run(seed=9)
    resumed.load(first)
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


def kill_after_renaming(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the process die right after so many renames."""
    rename, done = Path.rename, [0]

    def renaming(self: Path, target: Path) -> Path:
        found = rename(self, target)
        done[0] += 1
        if done[0] == calls:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, "rename", renaming)


@pytest.mark.parametrize(("calls", "is_new"), [(1, False), (2, True)], ids=["before the new one", "after the new one"])
def test_a_kill_while_one_is_replaced_loses_no_checkpoint(
    tmp_path: Path, calls: int, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Run(seed=1).step(1, 1), Run(seed=2).step(1, 1)
    folder = old.save(tmp_path, 1)
    with monkeypatch.context() as patch:
        kill_after_renaming(patch, calls)
        with pytest.raises(KeyboardInterrupt):
            new.save(tmp_path, 1)
    assert folder.exists() == is_new
    (found,) = checkpoints(tmp_path)
    assert step_of(found) == 1
    assert find_resume(tmp_path, "auto", lambda note: pytest.fail(note)) == found
    assert find_resume(tmp_path, str(folder), lambda note: pytest.fail(note)) == found
    run = Run(seed=3)
    assert run.load(found) == state_at(1)
    assert_bit_equal(run.tensors(), (new if is_new else old).tensors())
    clear_drafts(tmp_path)
    assert names_in(tmp_path) == ["checkpoint-1"]
    assert_bit_equal(load_file(folder / "model.safetensors"), run.tensors())
    assert find_damage(folder) is None


def test_a_replaced_checkpoint_is_back_when_the_new_one_can_not_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Run(seed=1).step(1, 1)
    folder, rename = old.save(tmp_path, 1), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CheckpointError, match="Input/output error"):
        Run(seed=2).step(1, 1).save(tmp_path, 1)
    assert names_in(tmp_path) == ["checkpoint-1"]
    assert_bit_equal(load_file(folder / "model.safetensors"), old.tensors())


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


def refuse_to_flush(monkeypatch: pytest.MonkeyPatch, is_kind: Callable[[int], bool], code: int) -> None:
    """Let fsync fail with `code` for what has a mode of a kind."""
    flush = os.fsync

    def refusing(descriptor: int) -> None:
        if is_kind(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP], ids=["EINVAL", "ENOTSUP"])
def test_a_file_system_that_flushes_no_folders_holds_checkpoints(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_flush(monkeypatch, stat.S_ISDIR, code)
    run = Run().step(1, 1)
    folder = run.save(tmp_path, 1)
    assert names_in(tmp_path) == ["checkpoint-1"]
    assert_bit_equal(load_file(folder / "model.safetensors"), run.tensors())


@pytest.mark.parametrize(("is_kind", "code"), [(stat.S_ISDIR, errno.EIO), (stat.S_ISREG, errno.EINVAL)])
def test_other_failures_to_flush_are_told(
    tmp_path: Path, is_kind: Callable[[int], bool], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_flush(monkeypatch, is_kind, code)
    with pytest.raises(CheckpointError, match="can't be written"):
        Run().step(1, 1).save(tmp_path, 1)
    assert names_in(tmp_path) == []


def test_a_kill_while_one_is_deleted_leaves_no_half_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Run().step(1, 1).save(tmp_path, 1)
    delete = shutil.rmtree

    def killed(path: Path, **options: Any) -> None:
        if path.exists():
            (path / "model.safetensors").unlink()
            raise KeyboardInterrupt
        delete(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("lrc.training.checkpoint.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_checkpoint(folder)
    assert not folder.exists()
    assert names_in(tmp_path) == [".checkpoint-1.removed"]
    (tmp_path / ".checkpoint-2.partial").mkdir()
    (tmp_path / "kept").mkdir()
    clear_drafts(tmp_path)
    assert names_in(tmp_path) == ["kept"]


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (
            {name: SHAPES[name] for name in list(SHAPES)[1:]},
            ["1 of its trained tensors differ", "projections.model.embed_tokens is [6, 3], not missing"],
        ),
        ({**SHAPES, "gains.more": (3,), "gains.most": (3,)}, ["2 of its trained", "gains.more is missing, not [3]"]),
        ({**SHAPES, "projections.lm_head": (6, 4)}, ["projections.lm_head is [6, 3], not [6, 4]"]),
    ],
)
def test_another_students_checkpoint_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], said: list[str]
) -> None:
    folder = Run().step(1, 1).save(tmp_path, 1)
    with pytest.raises(CheckpointError) as caught:
        Run(shapes=shapes).load(folder)
    for part in [str(folder), "another student", *said]:
        assert part in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil", [cut, flip, lambda path: path.write_bytes(b""), Path.unlink], ids=["cut", "flip", "empty", "gone"]
)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_and_named(tmp_path: Path, name: str, spoil: Callable[[Path], Any]) -> None:
    folder = Run().step(1, 1).save(tmp_path, 1)
    spoil(folder / name)
    with pytest.raises(CheckpointError, match=f"is damaged: {name}") as caught:
        Run().load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ['{"step": 1, "tokens": 2}', '{"step": 1, "tokens": 2, "seconds": 3, "x": 4}', "[1]"])
def test_a_state_with_other_keys_is_refused(tmp_path: Path, text: str) -> None:
    folder = Run().step(1, 1).save(tmp_path, 1)
    (folder / "state.json").write_text(text)
    write_sums(folder)
    with pytest.raises(CheckpointError, match=r"state\.json can't be read"):
        Run().load(folder)


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
    write_sums(folder)
    with pytest.raises(CheckpointError, match="optimiser state"):
        Run().load(folder)
