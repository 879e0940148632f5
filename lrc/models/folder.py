"""Model folders: where one lies, what identifies its weights, and its tensors read one at a time."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrc.errors import CheckpointError, ConfigError

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


def check_source(source: str) -> None:
    """Check that a model source is a folder with a config.json or looks like a hub id.

    Raises:
        ConfigError: It is neither, so loading could only fail.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"A model folder must hold a config.json, but {source} has none.")
        return
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") != 1 or path.exists()
    if looks_like_path:
        raise ConfigError(
            f"The model must be a folder with a config.json or a hub id (owner/name), but {source!r} is neither."
        )


def resolve_folder(source: str, *, weights: bool = True) -> Path:
    """Return the local folder of a model: itself, or the hub's snapshot (downloaded if it is not there yet).

    Args:
        source: Folder or hub id.
        weights: Whether the weights must be there; False fetches config, tokenizer and licence alone.

    Raises:
        ConfigError: The source is neither a model folder nor a hub id.
        CheckpointError: The hub does not answer, or the weights are not safetensors.
    """
    check_source(source)
    folder = Path(source)
    if not folder.is_dir():
        try:
            weights_and_words = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
            terms = ["README.md", "LICENSE*", "NOTICE*", "USE_POLICY*"]  # for the student's folder and model card
            code = ["*.py"]  # imported with trust_remote_code alone
            others = ["*/*", "consolidated*"]  # the same weights once more, in another format
            wanted = [*weights_and_words, *terms, *code]
            unwanted = others if weights else [*others, "*.safetensors*"]  # an index alone would promise its files
            folder = Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=unwanted))
        except Exception as error:  # hub errors have no common base
            raise CheckpointError(
                f"{source} can't be fetched from the hub, and there is no folder {folder.absolute()}: {error}"
            ) from error
    if weights and not has_weights(folder):
        raise CheckpointError(
            f"{folder} must hold {WEIGHTS} or {WEIGHTS_INDEX}, but has neither. Turn weights of another format into it "
            "by loading them once with transformers and save_pretrained."
        )
    return folder


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights as safetensors."""
    return (folder / WEIGHTS).is_file() or (folder / WEIGHTS_INDEX).is_file()


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model folder, sorted.

    Raises:
        CheckpointError: The index is damaged or names a file that is not there.
    """
    index = folder / WEIGHTS_INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():  # as transformers prefers it
        return [folder / WEIGHTS]
    try:
        names = sorted({os.fspath(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not a weights index: {error}") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{index} names {missing[0]}, which is not in {folder}.")
    return [folder / name for name in names]


class ModelTensors:
    """Tensors of a safetensors model folder by name, read from disk when asked for.

    Values are read through a file that is opened for them alone: an open one keeps every page in memory that was read.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder's files.

        Raises:
            CheckpointError: A file is not safetensors.
        """
        self._handles: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        for path in weight_files(folder):
            try:
                handle = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} can't be read as safetensors: {error}") from error
            for name in handle.keys():  # noqa: SIM118  (a safetensors handle is no dict)
                self._handles[name], self._paths[name] = handle, path

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._handles)

    def read(self, name: str) -> Tensor:
        """Read one tensor in the dtype it is stored in."""
        tensor: Tensor = self._open(name).get_tensor(name)
        return tensor

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Read the rows from `first` to `last` of a tensor in the dtype it is stored in."""
        rows: Tensor = self._open(name).get_slice(name)[first:last]
        return rows

    def _open(self, name: str) -> Any:
        return safe_open(self._paths[name], framework="pt")

    def shape_and_dtype(self, name: str) -> tuple[list[int], str]:
        """Return a tensor's shape and stored dtype without reading it."""
        piece = self._handles[name].get_slice(name)
        return list(piece.get_shape()), str(piece.get_dtype())

    def head(self, name: str, values: int) -> bytes:
        """Return a tensor's first values (in memory order) as bytes; of large tensors only the first rows are read."""
        piece = self._handles[name].get_slice(name)
        shape = piece.get_shape()
        if not shape:
            first = self.read(name)[None]
        else:
            a_row = max(1, math.prod(shape[1:]))
            first = piece[: -(-values // a_row)]
        flat: Tensor = first.flatten()[:values].contiguous().view(torch.uint8)
        return bytes(flat.numpy().tobytes())

    def dtype(self) -> torch.dtype:
        """Return the dtype of the first floating tensor."""
        names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        for name in self._handles:
            stored = self.shape_and_dtype(name)[1]
            if stored in names:
                return names[stored]
        raise CheckpointError("The model's weights must be 16, 32 or 64 bit floats; none of its tensors is.")


def weights_hash(folder: Path) -> str:
    """Identify a model's weights: sha256 over every tensor's name, shape, dtype and first 64 values.

    The whole file is not read, so a teacher of any size is identified in moments; another fine-tune of the same
    architecture differs in the values, another architecture in the names and shapes.
    """
    tensors = ModelTensors(folder)
    digest = hashlib.sha256()
    for name in sorted(tensors.names()):
        digest.update(name.encode())
        digest.update(str(tensors.shape_and_dtype(name)).encode())
        digest.update(tensors.head(name, 64))
    return digest.hexdigest()
