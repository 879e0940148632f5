"""Ranks that write one checkpoint, and judge one: all succeed or all stop, with the words of the one that failed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lrc.data.folder_hash import find_damage
from lrc.errors import CheckpointError
from lrc.export.convert import read_source
from lrc.models.stored_tensors import StoredTensors, stored_files
from lrc.training.checkpoint import clear_drafts, read_checkpoint
from lrc.training.checkpoint_list import checkpoints, find_resume
from lrc.training.together import by_first, together
from tests.training.save_ranks import MATRIX

RANKS = ("00001-of-00002", "00002-of-00002")
PIECES = [f"{stem}-{rank}.safetensors" for stem in ("model", "optimizer") for rank in RANKS]
KILLED = -9


def start(folder: Path, what: str) -> tuple[list[int], list[str]]:
    """Return the exit codes of both ranks and what each has printed."""
    script = Path(__file__).with_name("save_ranks.py")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    output = folder.parent / f"output-{what}"
    codes = [int(code) for code in done.stdout.strip(" []\n").split(",")]
    return codes, [(output / f"rank-{rank}.txt").read_text() for rank in range(2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    codes, said = start(root / "train", "whole")
    assert codes == [0, 0], said
    return root / "train"


def test_every_rank_writes_its_own_files(saved: Path) -> None:
    folder = saved / "checkpoint-2"
    assert [path.name for path in saved.iterdir()] == ["checkpoint-2"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*PIECES, "SHA256SUMS", "lrc_config.json", "state.json"]
    )
    assert find_damage(folder) is None
    for rank, rows in zip(RANKS, (MATRIX[:4], MATRIX[4:]), strict=True):
        assert torch.equal(load_file(folder / f"model-{rank}.safetensors")["projections.lm_head"], rows)
    assert set(load_file(folder / PIECES[3])) == {"exp_avg/projections.lm_head"}
    found = read_checkpoint(
        folder,
        {"projections.lm_head": MATRIX.shape},
        {"exp_avg/projections.lm_head": MATRIX.shape, "step/projections.lm_head": torch.Size([])},
    )
    assert torch.equal(found.weights["projections.lm_head"], MATRIX)
    assert found.state.step == 2


def test_a_kill_between_the_ranks_writes_leaves_no_checkpoint(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "train"
    shutil.copytree(saved / "checkpoint-2", run / "checkpoint-1")
    codes, _ = start(run, "kill")
    assert codes[1] == KILLED
    assert codes[0] != 0
    draft = run / ".checkpoint-2.partial"
    assert PIECES[0] in {path.name for path in draft.iterdir()}
    assert not (draft / "SHA256SUMS").exists()
    assert [path.name for path in checkpoints(run)] == ["checkpoint-1"]
    assert find_resume(run, "auto", print) == run / "checkpoint-1"
    clear_drafts(run)
    assert [path.name for path in run.iterdir()] == ["checkpoint-1"]


def test_one_ranks_full_disk_stops_all_and_leaves_what_was_there(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "train"
    shutil.copytree(saved / "checkpoint-2", run / "checkpoint-2")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    codes, said = start(run, "full")
    assert codes == [2, 2]
    assert all("the disk is full" in text and str(run / "checkpoint-2") in text for text in said)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert [path.name for path in run.iterdir()] == ["checkpoint-2"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("spoil", [cut, Path.unlink], ids=["cut", "gone"])
@pytest.mark.parametrize("name", PIECES)
def test_a_damaged_piece_is_named(saved: Path, tmp_path: Path, name: str, spoil: Any) -> None:
    folder = shutil.copytree(saved / "checkpoint-2", tmp_path / "checkpoint-2")
    spoil(folder / name)
    with pytest.raises(CheckpointError, match=f"is damaged: {name}"):
        find_resume(tmp_path, str(folder), print)
    if name.startswith("model"):
        with pytest.raises(CheckpointError, match=f"is damaged: {name}"):
            read_source(folder, teacher=None, student=None)
    (folder / "SHA256SUMS").unlink()
    stem = name.split("-")[0]
    with pytest.raises(CheckpointError, match=name):
        StoredTensors(stored_files(folder, f"{stem}.safetensors"))


def test_all_ranks_go_by_the_checkpoint_that_the_first_finds(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "train"
    for step in (1, 2):
        shutil.copytree(saved / "checkpoint-2", run / f"checkpoint-{step}")
    cut(run / "checkpoint-2" / PIECES[2])
    codes, (first, second) = start(run, "damaged")
    assert codes == [0, 0]
    assert f"{run / 'checkpoint-2'} is damaged and passed over: {PIECES[2]}" in first
    assert "damaged" not in second
    assert all(f"takes {run / 'checkpoint-1'}" in text for text in (first, second))
    cut(run / "checkpoint-1" / PIECES[0])
    codes, said = start(run, "damaged")
    assert codes == [2, 2]
    assert all("No checkpoint in" in text and PIECES[2] in text for text in said)


def test_one_process_acts_alone() -> None:
    one: Any = SimpleNamespace(num_processes=1, is_main_process=True)
    assert together(one, lambda: 3) == [3]
    assert by_first(one, lambda: "found") == "found"

    def fail() -> None:
        raise CheckpointError("no room")

    with pytest.raises(CheckpointError, match=r"^no room$"):
        by_first(one, fail)
