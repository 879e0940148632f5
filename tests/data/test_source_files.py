"""Files of a source, local and behind a URL: listed in order, checked before work starts, fetched and put away."""

import logging
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lrc.data.source_files import check_columns, is_remote, list_files, on_this_machine
from lrc.errors import ConfigError, DataError
from tests.data.raw_sources import texts, write_source


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """A folder behind a URL, in the memory of this process."""
    files: Any = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    for name in ("b.jsonl", "sub/a.parquet", "README.md", "dataset_infos.json"):
        local = tmp_path / Path(name).name
        if local.suffix in (".jsonl", ".parquet"):
            write_source(local, texts(3))
        else:
            local.write_text("{}")
        files.pipe_file(f"/repo/{name}", local.read_bytes())
    return "memory://repo"


def names(source: str) -> list[str]:
    return [Path(file.path).name for file in list_files(source)]


def test_files_are_listed_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet", "c.jsonl.gz"):
        write_source(tmp_path / name, texts(1))
    (tmp_path / "notes.txt").write_text("no source")
    assert names(str(tmp_path)) == ["a.parquet", "b.jsonl", "c.jsonl.gz"]
    assert names(str(tmp_path / "*.jsonl*")) == ["b.jsonl", "c.jsonl.gz"]


def test_no_file_an_empty_one_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches none"):
        list_files(str(tmp_path))
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match=r"a\.jsonl is empty"):
        list_files(str(tmp_path))
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"a\.csv: the name of a source must end in"):
        list_files(str(tmp_path / "a.csv"))


def test_a_parquet_schema_is_checked_before_the_rows(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.parquet", [{"content": "a", "score": 1}])
    (file,) = list_files(str(path))
    check_columns(file, {"content"})
    with pytest.raises(DataError, match=r"must have the columns \['text'\], found \['content', 'score'\]"):
        check_columns(file, {"text"})
    path.write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="must be a parquet file"):
        check_columns(file, {"text"})


def test_descriptions_beside_data_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert names(str(tmp_path)) == ["dataset_infos.json"]
    write_source(tmp_path / "a.jsonl", texts(1))
    assert names(str(tmp_path)) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("", ["b.jsonl", "a.parquet"]), ("/**/*.parquet", ["a.parquet"]), ("/b.jsonl", ["b.jsonl"]), ("/*.csv", [])],
)
def test_a_url_stands_for_a_folder_a_glob_or_a_file(remote: str, pattern: str, found: list[str]) -> None:
    if not found:
        with pytest.raises(DataError, match="matches none"):
            list_files(remote + pattern)
        return
    files = list_files(remote + pattern)
    assert [file.path for file in files] == sorted(file.path for file in files)
    assert [Path(file.path).name for file in files] == found
    assert all(is_remote(file.path) and file.num_bytes > 0 and file.version for file in files)


def test_the_schema_of_a_remote_parquet_file_is_checked(remote: str) -> None:
    (file,) = list_files(f"{remote}/**/*.parquet")
    check_columns(file, {"text", "int_score"})
    with pytest.raises(DataError, match=r"memory://.*a\.parquet must have the columns"):
        check_columns(file, {"body"})


def test_a_remote_file_lies_here_while_it_is_read(remote: str, tmp_path: Path) -> None:
    (file,) = list_files(f"{remote}/b.jsonl")
    with on_this_machine(file.path, tmp_path / "00000-partial") as local:
        assert local.name == "00000-partial-b.jsonl"
        assert local.stat().st_size == file.num_bytes
    assert not local.exists()
    path = write_source(tmp_path / "c.jsonl", texts(1))
    with on_this_machine(str(path), tmp_path / "00000-partial") as local:
        assert local == path
    assert path.exists()


def test_what_cannot_be_fetched_is_an_error_that_names_it(remote: str, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"memory://repo/gone\.jsonl can't be fetched: FileNotFoundError"),
        on_this_machine(f"{remote}/gone.jsonl", tmp_path / "x"),
    ):
        pass
    with pytest.raises(DataError, match="can't be fetched: ValueError: Protocol not known"):
        list_files("nowhere://repo")


def test_a_hub_source_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route")

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for name in ("info", "find", "glob", "isdir"):
        monkeypatch.setattr(HfFileSystem, name, offline)
    with pytest.raises(DataError, match=r"hf://datasets/o/n/\*\.parquet can't be fetched: ConnectionError: no route"):
        list_files("hf://datasets/o/n/*.parquet")


def test_a_url_without_its_reader_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrc.data.source_files.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"hf://datasets/o/n/\*\.parquet needs datatrove.*pip install 'lrc\[data\]'"):
        list_files("hf://datasets/o/n/*.parquet")


def test_linked_folders_are_entered_once_and_rings_end(tmp_path: Path) -> None:
    folder, other = tmp_path / "raw", tmp_path / "elsewhere"
    (folder / "sub").mkdir(parents=True)
    other.mkdir()
    write_source(folder / "b.jsonl", texts(1))
    write_source(other / "a.jsonl", texts(2))
    (folder / "linked").symlink_to(other)
    (folder / "sub" / "again").symlink_to(other)
    (other / "ring").symlink_to(folder)
    assert [file.path for file in list_files(str(folder))] == [
        str(folder / "b.jsonl"),
        str(folder / "linked" / "a.jsonl"),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "parts"])
@pytest.mark.parametrize("pattern", ["", "/*"])
def test_a_link_to_nothing_is_refused_by_name(tmp_path: Path, name: str, pattern: str) -> None:
    write_source(tmp_path / "b.jsonl", texts(1))
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=rf"{name} must be a file, but links to .*gone, which is not there"):
        list_files(f"{tmp_path}{pattern}")


def test_a_folder_named_as_data_is_no_file_and_what_it_holds_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").mkdir()
    write_source(tmp_path / "a.parquet" / "part.parquet", texts(1))
    assert names(str(tmp_path)) == ["part.parquet"]


def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path / "b.jsonl", texts(1))
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"closed must be readable .*Permission denied"):
        list_files(str(tmp_path))
