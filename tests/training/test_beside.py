"""A file is written whole or not at all: a failure at any moment leaves what stood there."""

import os
from pathlib import Path
from typing import Any

import pytest

from lrc.training.beside import write_beside


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_holds_the_text_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_beside(tmp_path / "start.json", "one\ntwo\n")
    assert (tmp_path / "start.json").read_bytes() == b"one\ntwo\n"
    assert names_in(tmp_path) == ["start.json"]


def test_an_older_file_is_replaced_even_by_a_shorter_one(tmp_path: Path) -> None:
    (tmp_path / "start.json").write_text("much longer than what follows")
    write_beside(tmp_path / "start.json", "short")
    write_beside(tmp_path / "start.json", "")
    assert (tmp_path / "start.json").read_bytes() == b""
    assert names_in(tmp_path) == ["start.json"]


def test_the_old_text_stands_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "start.json"
    path.write_text("old")
    replace, seen = os.replace, []

    def look_first(draft: Any, target: Any) -> None:
        seen.append((path.read_text(), Path(draft).read_text(), Path(draft).parent, Path(target)))
        replace(draft, target)

    monkeypatch.setattr(os, "replace", look_first)
    write_beside(path, "new")
    assert seen == [("old", "new", tmp_path, path)]
    assert path.read_text() == "new"


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_failure_leaves_the_old_text(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "start.json"
    path.write_text("old")
    write = Path.write_text

    def write_half(self: Path, text: str, *args: Any) -> int:
        write(self, text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    def refuse(draft: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(Path, "write_text", write_half)
        else:
            patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="No space left"):
            write_beside(path, "the new text")
    assert path.read_text() == "old"
    write_beside(path, "the next text")
    assert path.read_text() == "the next text"
    assert names_in(tmp_path) == ["start.json"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_beside(tmp_path / "absent" / "start.json", "text")
    assert names_in(tmp_path) == []
