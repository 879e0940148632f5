"""What the ranks do at once and must agree on: if one fails, all of them stop, with its words."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate import Accelerator

from lrc.errors import CheckpointError

T = TypeVar("T")


def together(accelerator: Accelerator, action: Callable[[], T]) -> list[T]:
    """Let every rank act, and wait for all.

    Args:
        accelerator: Knows the ranks.
        action: This rank's.

    Returns:
        What each rank's action returned, in their order.

    Raises:
        CheckpointError: An action raised it; on every rank, with the words of the first rank that failed.
    """
    own: tuple[T | None, str | None]
    try:
        own = (action(), None)
    except CheckpointError as error:
        own = (None, str(error))
    outcomes: list[Any] = [own]
    if accelerator.num_processes > 1:
        outcomes = [None] * accelerator.num_processes
        dist.all_gather_object(outcomes, own)
    for _, failure in outcomes:
        if failure is not None:
            raise CheckpointError(failure)
    return [result for result, _ in outcomes]


def by_first(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Let the first rank act alone; all get what it returns, or its CheckpointError."""
    result: Any = together(accelerator, action if accelerator.is_main_process else lambda: None)[0]
    found: T = result
    return found
