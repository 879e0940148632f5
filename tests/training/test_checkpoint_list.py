"""Which checkpoint a run goes on from, which it keeps: never half-written or damaged ones, always the best one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lrc.data.folder_hash import write_sums
from lrc.errors import CheckpointError
from lrc.training.checkpoint_list import best_checkpoint, checkpoints, discard_after, find_resume, rotate, step_of
from lrc.training.run_state import RunState


def place(folder: Path, *steps: int, kl: float | None = None) -> None:
    for step in steps:
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True)
        state = RunState(step=step, tokens=0, seconds=0.0, sequences_per_step=1)
        (path / "state.json").write_text(replace(state, held_out_kl=kl).to_json())
        (path / "model.safetensors").write_bytes(b"weights")
        write_sums(path)


def place_litter(folder: Path) -> list[str]:
    """Put what is no complete checkpoint beside the checkpoints; return the names."""
    for name in (
        ".checkpoint-99.partial",
        ".checkpoint-94.removed",
        "checkpoint-98.old",
        "checkpoint-x",
        "a-checkpoint-97",
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "state.json").write_text("{}")
    (folder / "checkpoint-96").mkdir()
    (folder / "checkpoint-95").write_text("a file")
    return names_in(folder)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def spoil(path: Path) -> None:
    path.write_bytes(b"W" + path.read_bytes()[1:])


def resume(folder: Path, how: str = "auto") -> tuple[Path | None, list[str]]:
    notes: list[str] = []
    return find_resume(folder, how, notes.append), notes


def test_checkpoints_come_in_the_order_of_their_steps_and_are_complete(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "absent") == []
    place_litter(tmp_path)
    assert checkpoints(tmp_path) == []
    place(tmp_path, 10, 9, 100, 2)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [2, 9, 10, 100]


def test_auto_resumes_the_newest_complete_checkpoint_if_there_is_one(tmp_path: Path) -> None:
    assert resume(tmp_path / "absent") == (None, [])
    place_litter(tmp_path)
    assert resume(tmp_path) == (None, [])
    place(tmp_path, 9, 10)
    assert resume(tmp_path) == (tmp_path / "checkpoint-10", [])


def test_auto_passes_over_damaged_checkpoints_and_names_the_file(tmp_path: Path) -> None:
    place(tmp_path, 2, 4, 6)
    spoil(tmp_path / "checkpoint-6" / "model.safetensors")
    (tmp_path / "checkpoint-4" / "SHA256SUMS").unlink()
    found, notes = resume(tmp_path)
    assert found == tmp_path / "checkpoint-2"
    assert len(notes) == 2
    assert f"{tmp_path / 'checkpoint-6'} is damaged and passed over: model.safetensors" in notes[0]
    assert f"{tmp_path / 'checkpoint-4'} is damaged and passed over: SHA256SUMS" in notes[1]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew_silently(tmp_path: Path) -> None:
    place(tmp_path, 2, 4)
    for step in (2, 4):
        spoil(tmp_path / f"checkpoint-{step}" / "state.json")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is whole.*state\.json.*--overwrite"):
        resume(tmp_path)


def test_a_named_checkpoint_is_taken_wherever_it_lies_if_it_is_whole(tmp_path: Path) -> None:
    place(tmp_path / "other", 4)
    named = tmp_path / "other" / "checkpoint-4"
    assert resume(tmp_path, str(named)) == (named, [])
    for wrong in (tmp_path / "other", tmp_path / "other" / "checkpoint-5"):
        with pytest.raises(CheckpointError, match=r"or be 'auto', but .* has no state\.json"):
            resume(tmp_path, str(wrong))
    spoil(named / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is damaged: model\.safetensors"):
        resume(tmp_path, str(named))


def test_a_named_checkpoint_that_a_kill_left_set_aside_is_found_unless_its_successor_stands(tmp_path: Path) -> None:
    place(tmp_path, 4)
    named, aside = tmp_path / "checkpoint-4", tmp_path / ".checkpoint-4.replaced"
    named.rename(aside)
    assert resume(tmp_path, str(named)) == resume(tmp_path) == (aside, [])
    place(tmp_path, 4)
    assert resume(tmp_path, str(named)) == resume(tmp_path) == (named, [])


@pytest.mark.parametrize(("keep", "kept"), [(None, [2, 9, 10, 100]), (1, [100]), (2, [10, 100]), (9, [2, 9, 10, 100])])
def test_rotation_keeps_the_newest_and_touches_nothing_else(tmp_path: Path, keep: int | None, kept: list[int]) -> None:
    litter = place_litter(tmp_path)
    place(tmp_path, 10, 9, 100, 2)
    rotate(tmp_path, keep)
    assert names_in(tmp_path) == sorted([*litter, *(f"checkpoint-{step}" for step in kept)])


def test_rotation_keeps_the_best_measured_one_too(tmp_path: Path) -> None:
    place(tmp_path, 1, 3)
    assert best_checkpoint(tmp_path) is None
    for step, kl in ((2, 0.5), (4, 0.3), (6, 0.4)):
        place(tmp_path, step, kl=kl)
    place(tmp_path, 8)
    spoil(tmp_path / "checkpoint-2" / "state.json")
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    rotate(tmp_path, 1)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [4, 8]
    place(tmp_path, 10, kl=0.2)
    rotate(tmp_path, 1)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [10]


def test_what_lies_after_a_step_is_discarded(tmp_path: Path) -> None:
    place(tmp_path, 2, 4, 6)
    discard_after(tmp_path, 4)
    assert [step_of(path) for path in checkpoints(tmp_path)] == [2, 4]
    assert json.loads((tmp_path / "checkpoint-4" / "state.json").read_text())["step"] == 4
