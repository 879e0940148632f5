"""A file is replaced whole, or left as it is."""

from pathlib import Path

import pytest

from lrc.data.whole_file import write_if_changed


def test_the_same_content_leaves_the_file_untouched_and_another_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "files.json"
    write_if_changed(path, b"one")
    first = path.stat()
    write_if_changed(path, b"one")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    with path.open("rb") as reader:
        write_if_changed(path, b"another")
        assert reader.read() == b"one"  # who reads it goes on with the file that it opened
    assert path.read_bytes() == b"another"
    assert [entry.name for entry in tmp_path.iterdir()] == ["files.json"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "files.json"
    write_if_changed(path, b"one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lrc.data.whole_file.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_if_changed(path, b"another")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["files.json"]
