"""Writes down which share of a held teacher a process keeps; for tests and for ranks that tests start."""

import json
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from lrc.models.held_teacher import HeldLinear
from lrc.verbs import train


def note_shares(path: Path) -> None:
    """Write, as soon as this process's engine is made, what is left in the store and each packed piece.

    The file is `{"store": bytes, "pieces": [[dtype, whole shape, bytes here], ...]}`.
    """
    make = train.make_engine

    def making(accelerator: Any, pair: nn.Module, *arguments: Any, **options: Any) -> Any:
        engine = make(accelerator, pair, *arguments, **options)
        held = [module for module in pair.modules() if isinstance(module, HeldLinear)]
        pieces = [_share(piece) for module in held for piece in module.pieces or ()]
        path.write_text(json.dumps({"store": held[0].held.store.num_bytes, "pieces": pieces}))
        return engine

    train.make_engine = making


def _share(piece: Any) -> list[Any]:
    if isinstance(piece, DTensor):
        return [str(piece.dtype), list(piece.shape), piece.to_local().untyped_storage().nbytes()]
    return [str(piece.dtype), list(piece.ds_shape), piece.ds_tensor.nbytes]  # DeepSpeed's
