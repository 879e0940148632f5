"""Trained tensors on disk, read when asked for, whole or in part, from one file or from the pieces of several ranks.

Where the strategy shards, each rank writes what it holds of a tensor: a run of consecutive values of the flattened one,
as rows (FSDP2) or flat (ZeRO-3). The header of its file says where in the whole that run begins.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrc.errors import CheckpointError

PIECES = "pieces"
"""Key of a file's metadata: JSON of name -> [place of the first value in the flattened tensor, the whole's shape]."""
_PIECE_FILE = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one rank holds of a tensor: consecutive values of the flattened one."""

    values: Tensor
    """In any shape: whole rows, or flat."""
    start: int
    """Place of the first value in the flattened whole tensor."""
    shape: torch.Size
    """Of the whole tensor."""

    @property
    def is_whole(self) -> bool:
        return self.values.shape == self.shape


def whole_piece(tensor: Tensor) -> Piece:
    """Take a whole tensor for a piece."""
    return Piece(values=tensor, start=0, shape=tensor.shape)


def piece_name(whole: str, rank: int, ranks: int) -> str:
    """Name the file of a rank's pieces: `model-00001-of-00008.safetensors` of the first one's `model.safetensors`."""
    return f"{whole.removesuffix('.safetensors')}-{rank + 1:05}-of-{ranks:05}.safetensors"


def stored_files(folder: Path, whole: str) -> list[Path]:
    """List the files that hold a folder's tensors: `whole`, or one a rank, missing ones too; empty if there is none."""
    if (folder / whole).is_file():
        return [folder / whole]
    ranks = max((_piece_count(path, whole) or 0 for path in folder.glob("*.safetensors")), default=0)
    return [folder / piece_name(whole, rank, ranks) for rank in range(ranks)]


def is_piece_file(path: Path, whole: str) -> bool:
    """Whether a file is named as one rank's pieces of `whole`."""
    return _piece_count(path, whole) is not None


def _piece_count(path: Path, whole: str) -> int | None:
    match = _PIECE_FILE.fullmatch(path.name)
    return int(match["count"]) if match is not None and f"{match['stem']}.safetensors" == whole else None


@dataclass(frozen=True)
class _Part:
    """Where a run of a tensor's values lies."""

    start: int
    shape: tuple[int, ...]
    """As stored."""
    whole: tuple[int, ...]
    path: Path

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    def read(self, name: str, first: int, last: int) -> Tensor:
        """Read the values from `first` to `last` of the whole tensor that lie here; of a file, their rows only."""
        first, last = max(first, self.start) - self.start, min(last, self.stop) - self.start
        handle: Any = safe_open(self.path, framework="pt")  # an open file keeps in memory what was read of it
        if not self.shape:
            alone: Tensor = handle.get_tensor(name)
            return alone.flatten()
        a_row = math.prod(self.shape[1:])
        row = first // a_row
        rows: Tensor = handle.get_slice(name)[row : -(-last // a_row)]
        return rows.flatten()[first - row * a_row : last - row * a_row]


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of one or several files by name; each access reads from the disk."""

    def __init__(self, paths: list[Path]) -> None:
        """Open the files and check that they hold every tensor whole.

        Args:
            paths: From `stored_files`, or any safetensors file.

        Raises:
            CheckpointError: A file can't be read, or values of a tensor are missing or there twice.
        """
        self.paths = paths
        self._parts: dict[str, list[_Part]] = {}
        for path in paths:
            try:
                self._open(path)
            except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
                raise CheckpointError(
                    f"{path} can't be read as safetensors: {error}. Take another checkpoint."
                ) from error
        for name, parts in self._parts.items():
            parts.sort(key=lambda part: part.start)
            self._check_whole(name, parts)
        self.shapes = {name: torch.Size(parts[0].whole) for name, parts in self._parts.items()}

    def _open(self, path: Path) -> None:
        handle: Any = safe_open(path, framework="pt")
        places = json.loads((handle.metadata() or {}).get(PIECES, "{}"))
        if not isinstance(places, dict):
            raise TypeError(f"its metadata's {PIECES} must be a table, found {places}")
        for name in handle.keys():  # noqa: SIM118  (a safetensors handle is no dict)
            shape = tuple(handle.get_slice(name).get_shape())
            start, whole = places.get(name, (0, shape))
            self._parts.setdefault(name, []).append(_Part(int(start), shape, tuple(whole), path))

    def _check_whole(self, name: str, parts: list[_Part]) -> None:
        size = math.prod(parts[0].whole)
        borders = [part.start for part in parts] + [size]
        ends = [0] + [part.stop for part in parts]
        if borders != ends or len({part.whole for part in parts}) > 1:
            raise CheckpointError(
                f"The files {', '.join(path.name for path in self.paths)} in {self.paths[0].parent} don't hold the "
                f"{size} values of {name} once each. Take another checkpoint."
            )

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        return self.values_of(name, 0, shape.numel()).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def values_of(self, name: str, start: int, stop: int) -> Tensor:
        """Read values `start` to `stop` of a flattened tensor, flat."""
        found = [part.read(name, start, stop) for part in self._parts[name] if part.start < stop and start < part.stop]
        if not found:
            return torch.empty(0)
        return found[0] if len(found) == 1 else torch.cat(found)
