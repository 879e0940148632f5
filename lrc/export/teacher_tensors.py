"""The teacher's tensors under the names of the stock model, whatever its files call them.

Most families store what their model holds, and are read from disk tensor by tensor. Where transformers renames on
loading (one file tensor an expert, one stacked parameter in the model) or restores quantised weights, the teacher is
loaded whole instead.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lrc.models.folder import ModelTensors
from lrc.models.teacher import load_model

PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "BOOL")
"""As safetensors writes them, dtypes whose values are what they say; numbers of fewer bits have a scale elsewhere."""


class TeacherTensors(Protocol):
    """Tensors by name."""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """Return one tensor in the dtype it is stored in."""
        ...

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return the rows from `first` to `last` of one tensor in the dtype it is stored in."""
        ...

    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        ...


class LoadedTensors:
    """Tensors of a model in memory."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._tensors: dict[str, Tensor] = model.state_dict()
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._tensors[name]

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return some rows of one tensor."""
        return self._tensors[name][first:last]

    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        return self._dtype


def is_renamed(folder: Path, names: list[str], embedding: str, head: str) -> bool:
    """Tell whether a folder's files lack tensors of the stock model as they are; a tied head may lack.

    They lack one that has another name there, or is quantised.
    """
    stored = ModelTensors(folder)
    lacking = {name for name in names if name not in stored or stored.shape_and_dtype(name)[1] not in PLAIN}
    return bool(lacking - {head}) or (head in lacking and embedding not in stored)


def open_teacher(folder: Path, *, renamed: bool, trust_remote_code: bool = False) -> TeacherTensors:
    """Open a teacher's tensors, from disk one by one or, if its files use other names, loaded whole."""
    stored = ModelTensors(folder)
    if not renamed:
        return stored
    dtype = stored.dtype()
    model = load_model(str(folder), dtype=dtype, device=torch.device("cpu"), trust_remote_code=trust_remote_code)
    return LoadedTensors(model, dtype)
