"""Where a named checkpoint lies: under its own name if that is there, else set aside by a save that was killed."""

from pathlib import Path

import pytest

from lrc.models.set_aside import find_set_aside, set_aside


def test_a_checkpoint_is_set_aside_hidden_beside_itself() -> None:
    assert set_aside(Path("run/checkpoint-12")) == Path("run/.checkpoint-12.replaced")


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_only_a_checkpoint_that_is_absent_is_looked_for_under_its_other_name(tmp_path: Path, file: str) -> None:
    named = tmp_path / "checkpoint-2"
    assert find_set_aside(named / file) == named / file
    (tmp_path / ".checkpoint-2.replaced").mkdir()
    (tmp_path / ".checkpoint-2.replaced" / "model.safetensors").write_bytes(b"old")
    assert find_set_aside(named / file) == tmp_path / ".checkpoint-2.replaced" / file
    named.mkdir()
    assert find_set_aside(named / file) == named / file


@pytest.mark.parametrize("path", ["", ".", "/", "..", "weights.safetensors"])
def test_a_path_without_a_folder_of_its_own_is_left_as_it_is(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_set_aside(Path(path)) == Path(path)
