"""A folder's record finds and names every cut, changed or lost file, the record itself included."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lrc.data.folder_hash import SUMS, find_damage, write_sums

CONTENT = {"model.safetensors": b"\x00\x01weights" * 9, "state.json": b'{"step": 3}\n', "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    write_sums(tmp_path)
    return tmp_path


def test_an_untouched_folder_has_no_damage(folder: Path) -> None:
    assert find_damage(folder) is None
    assert find_damage(folder, ("state.json",)) is None
    (folder / "notes.txt").write_text("added later")
    assert find_damage(folder) is None


def test_every_flipped_bit_and_every_cut_is_found_and_named(folder: Path) -> None:
    for name in (*CONTENT, SUMS):
        whole = (folder / name).read_bytes()
        for position in range(len(whole)):
            spoilt = bytearray(whole)
            spoilt[position] ^= 1 << (position % 8)
            for content in (bytes(spoilt), whole[:position]):
                (folder / name).write_bytes(content)
                assert str(find_damage(folder)).startswith(name), (name, position)
        (folder / name).write_bytes(whole)
    assert find_damage(folder) is None


@pytest.mark.parametrize("name", [*CONTENT, SUMS])
def test_a_lost_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert str(find_damage(folder)).startswith(name)


def test_only_the_asked_files_are_read(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    assert find_damage(folder, ("state.json",)) is None
    assert str(find_damage(folder, ("state.json", "model.safetensors"))).startswith("model.safetensors")
    assert str(find_damage(folder, ("unlisted",))).startswith("unlisted")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no coreutils")
def test_coreutils_reads_the_record(folder: Path) -> None:
    check = ["sha256sum", "--strict", "-c", SUMS]
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 0
    (folder / "state.json").write_text("{}")
    assert b"state.json: FAILED" in subprocess.run(check, cwd=folder, capture_output=True).stdout


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_share_the_files_out_and_leave_none(folder: Path, processes: int) -> None:
    assert all(find_damage(folder, share=(number, processes)) is None for number in range(processes))
    for name in CONTENT:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b"more")
        found = [find_damage(folder, share=(number, processes)) for number in range(processes)]
        (folder / name).write_bytes(content)
        assert [text.split()[0] for text in found if text is not None] == [name]
