"""A teacher of any size on disk, and a checkpoint of a student of it, written tensor by tensor with random values."""

from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.speed.rates import shape_sizes
from benchmarks.speed.shapes import Shape
from lrc.export.plain_folder import write_config, write_shards
from lrc.models.checkpoint import TRAINED_TENSORS

BLOCK = 4_194_301
"""Random values that tensors repeat; a prime, so that no two rows of a matrix are the same."""
SHARD_BYTES = 2_000_000_000


def write_teacher(shape: Shape, folder: Path, dtype: torch.dtype) -> None:
    """Write the shape's teacher as a sharded Hugging Face folder, if it is not there."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sizes = shape_sizes(shape)
    block = 0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    shapes = {name: torch.empty(size, dtype=dtype, device="meta") for name, size in sizes.teacher.items()}

    def values(name: str) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(sizes.teacher[name], dtype=dtype)
        return _repeated(block, sizes.teacher[name]).to(dtype)

    write_shards(shapes, folder, values, SHARD_BYTES)
    config: Any = shape.config()
    config.dtype = dtype
    write_config(config, folder)  # last: a folder that has one is whole


def write_checkpoint(shape: Shape, folder: Path) -> None:
    """Write random trained tensors of the shape's student, if they are not there."""
    target = folder / TRAINED_TENSORS
    if target.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sizes = shape_sizes(shape)
    block = 0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(1))
    trained = {
        name: _repeated(block, (shape.hidden, shape.d_student))
        if name.startswith("projections.")
        else torch.ones(shape.d_student)
        for name in sizes.plan.trained
    }
    draft = target.with_suffix(".part")
    save_file(trained, draft)
    draft.rename(target)


def _repeated(block: Tensor, size: tuple[int, ...]) -> Tensor:
    count = prod(size)
    return block.repeat(-(-count // block.numel()))[:count].view(size)
