"""What an optimiser remembers of each trained tensor, and so what a checkpoint takes: by shapes alone."""

from collections.abc import Collection, Mapping

import torch

from lrc.config import OptimizerName

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state beside its step count."""


def moment_shapes(
    shapes: Mapping[str, torch.Size], optimizer: OptimizerName, tables: Collection[str] = ()
) -> dict[str, torch.Size]:
    """List what the optimiser remembers after a step as `KEY/NAME`, for trained tensors of these shapes.

    Args:
        shapes: By checkpoint name.
        optimizer: `train.optimizer`.
        tables: Names of free embedding and head, which Muon moves by Adam's steps.
    """
    found: dict[str, torch.Size] = {}
    for name, shape in shapes.items():
        is_matrix = optimizer == "muon" and len(shape) > 1
        if is_matrix:
            found[f"row_size/{name}"] = torch.Size([*shape[:-1], 1])
        if is_matrix and name not in tables:
            found[f"momentum/{name}"] = shape
        else:
            found |= {f"step/{name}": torch.Size([])} | {f"{key}/{name}": shape for key in MOMENTS}
    return found


def moment_bytes(shapes: Mapping[str, torch.Size], optimizer: OptimizerName, tables: Collection[str] = ()) -> int:
    """Return the bytes of what `moment_shapes` lists, float32, step counts left out."""
    return 4 * sum(shape.numel() for shape in moment_shapes(shapes, optimizer, tables).values() if shape)


def checkpoint_bytes(shapes: Mapping[str, torch.Size], optimizer: OptimizerName, tables: Collection[str] = ()) -> int:
    """Return the bytes of a checkpoint: trained tensors and what the optimiser remembers of them, float32."""
    return 4 * sum(shape.numel() for shape in shapes.values()) + moment_bytes(shapes, optimizer, tables)
