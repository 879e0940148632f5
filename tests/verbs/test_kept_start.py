"""A kept start is bitwise the computed one, with its report; one that does not fit is refused."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lrc.verbs.kept_start as kept_module
import lrc.verbs.train as module
from lrc.config import Recipe
from lrc.errors import CheckpointError
from lrc.training.checkpoint_list import BEGUN
from lrc.verbs.train import train
from tests.tiny import tiny_recipe


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Read a run's log without what the clock decides."""
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file that a run of two steps wrote."""
    path = tmp_path / "starts" / "start.safetensors"
    train(tiny_recipe(tmp_path, run=str(tmp_path / "fresh"), train__max_steps=2), keep_start=path)
    return path


@pytest.fixture
def no_start(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept.is_file()
    monkeypatch.setattr(module, "fill", lambda *_: pytest.fail("the start was computed again"))


@pytest.mark.usefixtures("no_start")
def test_a_run_from_a_kept_start_is_the_run_that_computed_it(
    tmp_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept.read_bytes()
    last = train(tiny_recipe(tmp_path, run=str(tmp_path / "again"), train__max_steps=2), keep_start=kept)
    assert f"start: calibrated, read from {kept}" in capsys.readouterr().err
    assert len(lines_of(tmp_path / "again")) > 2
    assert lines_of(tmp_path / "again") == lines_of(tmp_path / "fresh")
    starts = [json.loads((tmp_path / run / "train" / "start.json").read_text()) for run in ("fresh", "again")]
    assert starts[0] == starts[1]  # the seconds of the start too
    assert starts[0]["calibration_tokens"] == 256
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (last, tmp_path / "fresh/train" / last.name))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())
    assert kept.read_bytes() == before
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_nothing_is_kept_unless_asked_for(tmp_path: Path, kept: Path) -> None:
    recipe = tiny_recipe(tmp_path, run=str(tmp_path / "plain"), train__max_steps=2)
    train(recipe)
    assert lines_of(tmp_path / "plain") == lines_of(tmp_path / "fresh")
    assert [path.name for path in tmp_path.rglob("*.safetensors") if "start" in path.name] == [kept.name]


def cut_short(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    """Kill a run between its start and its first step."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_loop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(recipe)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_that_was_cut_short_before_its_first_checkpoint_keeps_its_start(
    resume: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = train(tiny_recipe(tmp_path, run=str(tmp_path / "whole"), train__max_steps=2))
    recipe = tiny_recipe(tmp_path, train__max_steps=2)
    cut_short(monkeypatch, recipe)
    assert (tmp_path / "run" / "train" / BEGUN).is_file()
    monkeypatch.setattr(module, "fill", lambda *_: pytest.fail("the start was computed again"))
    again = train(recipe, resume=resume)
    assert "start: calibrated, as it was computed before this run was cut short" in capsys.readouterr().err
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (again, last))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")
    assert not (tmp_path / "run" / "train" / BEGUN).exists()


@pytest.mark.parametrize("changes", [{"train__seed": 7}, {"start": {"tokens": 128}}, {"overwrite": True}, {}])
def test_a_start_of_another_run_does_not_count(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(monkeypatch, tiny_recipe(tmp_path, train__max_steps=2))
    if not changes:
        (tmp_path / "run" / "train" / BEGUN).write_bytes(b"damaged")
    overwrite = bool(changes.pop("overwrite", False))
    filled: list[bool] = []
    fill = module.fill

    def noting(*arguments: Any) -> Any:
        filled.append(True)
        return fill(*arguments)

    monkeypatch.setattr(module, "fill", noting)
    train(tiny_recipe(tmp_path, train__max_steps=2, **changes), overwrite=overwrite)
    assert filled == [True]


def test_a_start_that_can_t_be_kept_is_said_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = tiny_recipe(tmp_path, train__max_steps=2)
    monkeypatch.setattr(kept_module, "save_file", full)
    train(recipe)
    assert "note: the start is not kept" in capsys.readouterr().err


def other_names(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = sorted(values)[0]
    return {("strange" if name == first else name): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_names, r"is missing there, float32 \[.*\] in the pair; strange is float32 \[.*\] there, missing in"),
        (lambda values: {name: value[:-1].clone() for name, value in values.items()}, r"and \d+ more"),
        (lambda values: {name: value.double() for name, value in values.items()}, "is float64 .* there, float32"),
    ],
)
@pytest.mark.usefixtures("no_start")
def test_values_of_another_pair_are_refused_before_an_earlier_run_is_deleted(
    tmp_path: Path, kept: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], named: str
) -> None:
    with safe_open(kept, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(kept)), kept, metadata=metadata)
    with pytest.raises(CheckpointError, match=named):
        train(tiny_recipe(tmp_path, run=str(tmp_path / "fresh")), keep_start=kept, overwrite=True)
    assert (tmp_path / "fresh" / "train" / "checkpoint-2").is_dir()


@pytest.mark.usefixtures("no_start")
def test_another_compute_dtype_and_damage_are_refused(tmp_path: Path, kept: Path) -> None:
    recipe = tiny_recipe(tmp_path, train__compute_dtype="bfloat16")
    with pytest.raises(CheckpointError, match="computed in float32, the run computes in bfloat16"):
        train(recipe, keep_start=kept)
    for damage in (kept.read_bytes()[:100], b""):
        kept.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"can't be read.*Delete it"):
            train(recipe, keep_start=kept)
    save_file({"a": torch.ones(1)}, kept)
    with pytest.raises(CheckpointError, match="must hold kept start values"):
        train(recipe, keep_start=kept)


def test_a_folder_that_can_t_be_made_ends_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fill", lambda *_: pytest.fail("the start was computed"))
    (tmp_path / "starts").write_text("a file")
    with pytest.raises(CheckpointError, match="can't be written"):
        train(tiny_recipe(tmp_path), keep_start=tmp_path / "starts" / "start.safetensors")
    assert not (tmp_path / "run" / "train" / "metrics.jsonl").exists()


def test_a_start_that_can_t_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: dict[str, torch.Tensor], path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept_module, "save_file", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        train(tiny_recipe(tmp_path), keep_start=tmp_path / "starts" / "start.safetensors")
    assert list((tmp_path / "starts").iterdir()) == []
