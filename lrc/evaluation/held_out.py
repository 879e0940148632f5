"""Held-out text of a run, measured at the start and during training: agreement, effective rank, and its collapse."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from lrc.evaluation.agreement import measure_pair
from lrc.evaluation.effective_rank import best_stream_ranks, pair_stream_ranks
from lrc.models.pair_model import PairModel

AlsoMeasure = Callable[[PairModel, int], dict[str, Any]]
"""(pair, step) -> more measures, written beside the others; benchmarks use it."""
COLLAPSED_BELOW = 0.5
"""A student's stream has collapsed where its effective rank, mean over the layers, is below this share of the best.

Measured (docs/quality.md): students that follow their teacher keep 0.56 to 0.93, collapsed ones 0.36 to 0.48.
"""


class HeldOutText:
    """A run's held-out text, ready to be measured again and again; the teacher's ranks are measured once."""

    def __init__(
        self, pair: PairModel, batches: list[tuple[Tensor, Tensor]], also_measure: AlsoMeasure | None = None
    ) -> None:
        """Keep what is measured.

        Args:
            pair: The pair, whatever it holds by then.
            batches: (ids, labels) `[batch, seq]` each, as `measure_pair` takes them.
            also_measure: Measures more, or None.
        """
        self.pair = pair
        self.batches = batches
        self.also_measure = also_measure
        self._best_ranks: list[float] = []

    def measure(self, step: int) -> dict[str, Any]:
        """Return the held-out measures of `metrics.jsonl` and `start.json` (docs/formats.md)."""
        with ExitStack() as stack:
            ranks = stack.enter_context(pair_stream_ranks(self.pair))
            best = self._best_ranks or stack.enter_context(best_stream_ranks(self.pair))
            agreement = measure_pair(self.pair, self.batches)
        self._best_ranks = best
        share = rank_share(ranks, best)
        measured = {
            **agreement.summary(),
            "effective_rank": ranks,
            "teacher_effective_rank": best,
            "effective_rank_share": share,
            "has_collapsed": share < COLLAPSED_BELOW,
        }
        return measured if self.also_measure is None else measured | self.also_measure(self.pair, step)


def rank_share(student: list[float], best: list[float]) -> float:
    """Return the student's effective rank over the best possible one, mean over the layers; noise exceeds 1."""
    return sum(ours / theirs for ours, theirs in zip(student, best, strict=True)) / len(student)
