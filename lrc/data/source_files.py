"""The files that a source's path stands for, on this machine or behind a URL such as `hf://datasets/OWNER/NAME`.

datatrove's I/O layer (fsspec) lists and fetches what lies behind a URL. A fetched file is read from this machine's disk
and then deleted, so that every format, hash and damage is handled in one way.
"""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lrc.data.line_index import SUFFIX
from lrc.errors import ConfigError, DataError

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zstd")
ARRAYS = (".json", ".json.gz", ".json.zst")
SUFFIXES = (*LINES, *ARRAYS, ".parquet")


class SourceFile(NamedTuple):
    """One file, not yet read."""

    path: str
    """Path or URL."""
    num_bytes: int
    version: str
    """Changes with the content: time of change, or the hub's blob id."""


def is_remote(path: str) -> bool:
    """Tell whether a path is a URL."""
    return "://" in path


def list_files(source: str) -> list[SourceFile]:
    """List the files that a source's path stands for, sorted by name.

    In a folder, .json files count only where there are no others: beside data they describe it.

    Raises:
        DataError: There is none, one has an unknown kind, or one is empty.
        ConfigError: It is a URL, and what reads URLs is not installed.
    """
    files = _list_remote(source) if is_remote(source) else _list_local(source)
    if not files:
        raise DataError(f"A source must be a file, folder or glob of {', '.join(SUFFIXES)}; {source!r} matches none.")
    for file in files:
        if not file.path.endswith(SUFFIXES):
            raise DataError(f"{file.path}: the name of a source must end in one of {', '.join(SUFFIXES)}.")
        if file.num_bytes == 0:
            raise DataError(f"{file.path} is empty. Fetch it again or leave it out.")
    return files


def check_columns(file: SourceFile, columns: set[str]) -> None:
    """Check a parquet file's schema before work starts; of a remote file, its end alone is fetched.

    Raises:
        DataError: The file is damaged, or a column is missing.
    """
    try:
        found = set(_read_names(file.path))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path} must be a parquet file, but can't be read: {error}. Fetch it again.") from error
    if columns - found:
        raise DataError(f"{file.path} must have the columns {sorted(columns)}, found {sorted(found)}.")


@contextmanager
def on_this_machine(path: str, draft: Path) -> Iterator[Path]:
    """Give the local path of a file; a remote one is fetched beside `draft` and deleted afterwards.

    Raises:
        DataError: It can't be fetched.
    """
    if not is_remote(path):
        yield Path(path)
        return
    from datatrove.io import get_datafolder

    parent, _, name = path.rpartition("/")
    local = draft.with_name(f"{draft.name}-{name}")
    try:
        with _named_errors(path):
            get_datafolder(parent).get_file(name, str(local))
        yield local
    finally:
        local.unlink(missing_ok=True)


def _read_names(path: str) -> Any:
    if not is_remote(path):
        return pq.read_schema(path).names
    from datatrove.io import get_datafolder

    parent, _, name = path.rpartition("/")
    with _named_errors(path), get_datafolder(parent).open(name, "rb") as stream:
        return pq.read_schema(stream).names


def _list_local(source: str) -> list[SourceFile]:
    if Path(source).is_dir():
        found = _without_descriptions(sorted(map(Path, _walk(source))))
    else:
        paths = sorted(glob.glob(source, recursive=True))
        found = [Path(path) for path in paths if _is_there(path) and not path.endswith(SUFFIX)]
    return [SourceFile(str(file), file.stat().st_size, str(file.stat().st_mtime_ns)) for file in found]


def _walk(folder: str) -> Iterator[str]:
    """Yield the data files below a folder, those of linked folders too, but each folder once: links may form a ring."""
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        facts = os.stat(parent)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders.sort()
        for name in names:
            path = os.path.join(parent, name)
            if name.endswith(SUFFIXES) and _is_there(path):
                yield path
            elif "." not in name:
                _is_there(path)  # a dangling link without an ending may have meant a folder


def _is_there(path: str) -> bool:
    """Tell whether a path is a file.

    Raises:
        DataError: It is a link to nothing.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise DataError(
            f"{path} must be a file, but links to {os.readlink(path)}, which is not there. Mend the link or remove it."
        )
    return os.path.isfile(path)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} must be readable to be part of a source, found: {error.strerror}.") from error


def _list_remote(source: str) -> list[SourceFile]:
    if find_spec("datatrove") is None:
        raise ConfigError(f"To read {source} needs datatrove. Install it with: pip install 'lrc[data]'.")
    from datatrove.io import get_fs_with_filepath

    with _named_errors(source):
        files, path = get_fs_with_filepath(source)
        is_folder = not glob.has_magic(path) and files.isdir(path)
        entries = files.find(path, detail=True) if is_folder else files.glob(path, detail=True)
    found = {name: facts for name, facts in sorted(entries.items()) if facts["type"] == "file"}
    if is_folder:
        kept = _without_descriptions([Path(name) for name in found if name.endswith(SUFFIXES)])
        found = {str(name): found[str(name)] for name in kept}
    return [SourceFile(files.unstrip_protocol(name), facts["size"], _version(facts)) for name, facts in found.items()]


def _without_descriptions(files: list[Path]) -> list[Path]:
    data = [file for file in files if not file.name.endswith(ARRAYS)]
    return data or files


def _version(facts: dict[str, Any]) -> str:
    keys = ("blob_id", "ETag", "mtime", "created")
    return str(next((facts[key] for key in keys if facts.get(key) is not None), ""))


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Say which URL failed: the file systems behind fsspec raise errors of many kinds."""
    try:
        yield
    except (DataError, pa.ArrowException):
        raise
    except Exception as error:
        offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") else ""
        raise DataError(
            f"{path} can't be fetched: {type(error).__name__}: {error}.{offline} Check the address, the network and "
            "the access (hf auth login), or download it and name the folder."
        ) from error
