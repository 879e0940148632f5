"""The cache builds once, verifies, repairs and never leaves half a folder."""

import errno
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lrc.embedded.cache import SUMS_NAME, cache_root, find_damage, provide_folder
from lrc.errors import LrcError

ORIGIN = {"build": "1"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def provide(text: str = "content", origin: dict[str, str] = ORIGIN, lines: list[str] | None = None) -> Path:
    def build(folder: Path) -> None:
        (folder / "file.txt").write_text(text)

    report = [].append if lines is None else lines.append
    return provide_folder("kind/name", build=build, origin=origin, needed_bytes=1, report=report)


def test_cache_root_prefers_own_variable_then_shared_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("LRC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "lrc"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "lrc"


def test_folder_is_built_once_and_readable_by_all(cache: Path) -> None:
    folder = provide("first")
    assert folder == cache / "kind" / "name"
    assert provide("second") == folder
    assert (folder / "file.txt").read_text() == "first"
    assert (folder / "file.txt").stat().st_mode & 0o777 == 0o644
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / SUMS_NAME).read_text().endswith("}\n")
    assert sorted(path.name for path in folder.parent.iterdir()) == [".name.lock", "name"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "file.txt").write_text("contend"), "content of file.txt has changed"),
        (lambda folder: (folder / "file.txt").write_text("cont"), "file.txt has 4 bytes instead of 7"),
        (lambda folder: (folder / "file.txt").unlink(), "file.txt is missing"),
        (lambda folder: (folder / SUMS_NAME).unlink(), f"{SUMS_NAME} is missing"),
        (lambda folder: (folder / SUMS_NAME).write_text("{"), f"{SUMS_NAME} is unreadable"),
        (lambda folder: (folder / SUMS_NAME).write_text("[]"), f"{SUMS_NAME} is unreadable"),
    ],
)
def test_damaged_folder_is_rebuilt_with_a_message(damage, reason: str) -> None:
    folder = provide()
    damage(folder)
    lines: list[str] = []
    provide(lines=lines)
    assert len(lines) == 1
    assert reason in lines[0]
    assert find_damage(folder, ORIGIN) is None
    assert (folder / "file.txt").read_text() == "content"
    assert sorted(path.name for path in folder.parent.iterdir()) == [".name.lock", "name"]


def test_folder_of_another_origin_is_rebuilt() -> None:
    provide("old")
    folder = provide("new", {"build": "2"})
    assert (folder / "file.txt").read_text() == "new"
    assert json.loads((folder / SUMS_NAME).read_text())["origin"] == {"build": "2"}


def test_failed_build_leaves_what_was_there() -> None:
    folder = provide()
    (folder / "file.txt").write_text("contend")

    def build(fresh: Path) -> None:
        (fresh / "file.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LrcError, match=r"No space left on device.*LRC_CACHE"):
        provide_folder("kind/name", build=build, origin=ORIGIN, needed_bytes=1, report=lambda line: None)
    assert (folder / "file.txt").read_text() == "contend"
    assert sorted(path.name for path in folder.parent.iterdir()) == [".name.lock", "name"]


def test_leftovers_of_a_killed_build_are_removed(cache: Path) -> None:
    leftover = cache / "kind" / ".name.new-killed"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    provide()
    assert not leftover.exists()


def test_too_little_space_fails_before_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10, 9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(LrcError, match=r"must have 0 MB free.*LRC_CACHE"):
        provide_folder(
            "kind/name", build=lambda folder: pytest.fail("built"), origin=ORIGIN, needed_bytes=1, report=print
        )


def test_cache_below_a_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").write_text("")
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "plain" / "below"))
    with pytest.raises(LrcError, match="set LRC_CACHE"):
        provide()


def test_several_at_once_build_once() -> None:
    builds: list[Path] = []
    together = threading.Barrier(4)
    lines: list[str] = []

    def build(folder: Path) -> None:
        builds.append(folder)
        while len(lines) < 3:  # until the three others wait
            pass
        (folder / "file.txt").write_text("content")

    def call() -> Path:
        together.wait()
        return provide_folder("kind/name", build=build, origin=ORIGIN, needed_bytes=1, report=lines.append)

    with ThreadPoolExecutor(4) as pool:
        folders = {future.result(30) for future in [pool.submit(call) for _ in range(4)]}
    assert len(builds) == len(folders) == 1
    assert all("Waiting for another process" in line for line in lines)
