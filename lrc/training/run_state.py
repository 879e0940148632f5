"""Where a run stands: the numbers that its next step depends on beside the tensors."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands."""

    step: int
    """Optimiser steps done."""
    tokens: int
    """Training tokens seen, padding left out."""
    seconds: float
    """Time spent training, over all sittings."""
    sequences_per_step: int
    """Sequences of one step over all ranks and micro-batches; with it a step number says which data come next."""
    held_out_kl: float | None = None
    """KL on the held-out text if it was measured at this very step."""
    skipped_batches: tuple[int, ...] = ()
    """Numbers of the batches that the divergence guard left out, rising."""
    gradient_norms: tuple[float, ...] = ()
    """The last steps' gradient norms, which the divergence guard compares the next one with."""
    objectives: tuple[float, ...] = ()
    """The last steps' losses, for the same; none in a checkpoint from before they were kept."""

    def to_json(self) -> str:
        """Return the content of `state.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunState":
        """Read the content of `state.json`.

        Raises:
            ValueError, TypeError, KeyError: It is not what `to_json` writes.
        """
        values: dict[str, Any] = json.loads(text)
        if {*values, "objectives"} != {entry.name for entry in fields(cls)}:
            raise ValueError(f"keys {sorted(values)} are not those of a run's state")
        lists: dict[str, Any] = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**(values | lists))

    @property
    def next_batch(self) -> int:
        """Number of the batch that the next step takes: batches in order, without the skipped ones."""
        number = self.step
        for skipped in self.skipped_batches:
            number += skipped <= number
        return number
