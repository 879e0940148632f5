"""What a run deletes before it begins, and that two runs never write to one folder."""

import errno
import os
from pathlib import Path

import pytest

from lrc.config import Recipe
from lrc.errors import CheckpointError, ConfigError
from lrc.training.run_folder import RECIPE, check_run_folder, only_run, prepare_folder
from tests.tiny import tiny_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "corpus" / "train"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path / "inputs")


@pytest.mark.parametrize("name", ["train", "train/part-0.jsonl", "train/*.jsonl", "train/deep/teacher"])
def test_an_input_inside_the_runs_folder_is_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / RECIPE).write_text("an earlier run")
    monkeypatch.chdir(folder.parent)
    for given in (name, str(folder.parent / name)):
        with pytest.raises(ConfigError, match=r"emptied first, but .* lies in it\. Name another run folder"):
            check_run_folder(folder, ["embedded:train", given])
    check_run_folder(folder, ["train.jsonl", "trainer/a.jsonl", "../train/b.jsonl", "owner/model"])


def test_a_glob_or_a_link_that_leads_into_the_folder_is_refused(folder: Path) -> None:
    (folder / RECIPE).write_text("an earlier run")
    (folder / "part.jsonl").write_text("{}")
    other = folder.parent / "other.jsonl"
    other.write_text("{}")
    (folder.parent / "outside.jsonl").symlink_to(folder / "part.jsonl")
    (folder / "inside.jsonl").symlink_to(other)
    for name in ("*/part.jsonl", "outside.jsonl", "train/inside.jsonl", "**/*.jsonl"):
        with pytest.raises(ConfigError, match="lies in it"):
            check_run_folder(folder, [str(folder.parent / name)])
    check_run_folder(folder, [str(folder.parent / "oth*.jsonl")])


def test_a_folder_that_no_run_has_made_is_refused(folder: Path) -> None:
    (folder / ".checkpoint-8.partial").mkdir()  # what a kill leaves
    (folder / f".{RECIPE}.partial").write_text("")
    check_run_folder(folder, [])
    (folder / "part-0.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds part-0\.jsonl but no recipe\.yaml, so it is no run's folder"):
        check_run_folder(folder, [])
    (folder / RECIPE).write_text("an earlier run")
    check_run_folder(folder, [])


@pytest.mark.parametrize("is_link", [False, True])
def test_an_earlier_run_is_deleted_and_its_place_stays(folder: Path, recipe: Recipe, is_link: bool) -> None:
    place = folder
    if is_link:
        place = folder.parent / "link"
        place.symlink_to(folder)
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (folder / "points").symlink_to(outside)
    (folder / "logs").mkdir()
    (folder / "logs" / "events").write_text("old")
    for name in (RECIPE, "metrics.jsonl"):
        (folder / name).write_text("old")
    prepare_folder(place, recipe, goes_on=True, overwrite=False)
    assert (folder / "metrics.jsonl").is_file()
    prepare_folder(place, recipe, goes_on=False, overwrite=False)
    assert [path.name for path in folder.iterdir()] == [RECIPE]
    assert "old" not in (folder / RECIPE).read_text()
    assert place.is_symlink() == is_link
    assert (outside / "kept").is_file()


def test_a_kill_while_a_run_is_deleted_leaves_its_recipe(
    folder: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (RECIPE, "a", "z"):
        (folder / name).write_text("old")
    unlink = Path.unlink

    def die_at_z(path: Path, *arguments: bool) -> None:
        if path.name == "z":
            raise OSError("killed")
        unlink(path, *arguments)

    monkeypatch.setattr(Path, "unlink", die_at_z)
    with pytest.raises(CheckpointError, match="can't be written: killed"):
        prepare_folder(folder, recipe, goes_on=False, overwrite=False)
    assert (folder / RECIPE).is_file()
    check_run_folder(folder, [])


def test_a_second_run_is_refused_until_the_first_has_ended(folder: Path) -> None:
    with only_run(folder) as hold:
        assert not (folder.parent / ".train.lock").exists()
        with only_run(folder):
            pass  # nobody writes yet
        hold()
        hold()
        with (
            pytest.raises(CheckpointError, match=r"Another run writes to .*train \(it has locked .*\)\. Wait until"),
            only_run(folder),
        ):
            pass
    with only_run(folder) as hold:
        hold()


def test_two_runs_that_begin_at_once_are_told_apart_when_they_write(folder: Path) -> None:
    with only_run(folder) as first, only_run(folder) as second:
        first()
        with pytest.raises(CheckpointError, match="Another run writes"):
            second()


def test_only_the_first_process_holds_the_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_run(folder) as hold:
        hold()
        monkeypatch.setenv("RANK", "1")
        with only_run(folder) as other:
            other()


def test_a_file_system_without_locks_keeps_nothing_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("lrc.training.run_folder.fcntl.flock", refuse)
    with only_run(folder) as one, only_run(folder) as other:
        one()
        other()


def test_where_nothing_can_be_locked_a_run_goes_on(folder: Path) -> None:
    folder.rmdir()
    folder.parent.rmdir()
    folder.parent.write_text("a file where the run is to be")
    with only_run(folder) as hold:
        hold()
    assert os.listdir(folder.parent.parent) == ["corpus"]
