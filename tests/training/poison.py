"""Makes the objective of chosen batches what a guard must refuse; for tests and for ranks that tests start."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lrc.models import pair_head
from lrc.training import loop


def poison(batches: Mapping[int, Sequence[float]], set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Multiply and add to the objective of some batches in this process.

    Args:
        batches: Number -> (factor, offset).
        set_attribute: What puts it in place; a test's monkeypatch takes it away again.
    """
    read, losses, current = loop.step_batches, pair_head.head_losses, [0]

    def reading(blocks: Any, plan: Any, batch: int, **options: Any) -> Any:
        current[0] = batch
        return read(blocks, plan, batch, **options)

    def poisoned(*arguments: Any, **options: Any) -> Any:
        total, lm, kl = losses(*arguments, **options)
        factor, offset = batches.get(current[0], (1.0, 0.0))
        return total * factor + offset, lm, kl

    set_attribute(loop, "step_batches", reading)
    set_attribute(pair_head, "head_losses", poisoned)
