"""Scores of tasks from the outcome of each item: mean, standard error, and the difference of two models item by item.

A task may have parts (MMLU's subjects); its score is then the mean over all items, and its standard error leaves the
spread between the parts out, as lm-evaluation-harness pools them. A group that weighs its parts alike is the average of
their scores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Standard errors from the middle to the end of a 95 % interval of a normal distribution."""

Parts = Sequence[Sequence[float]]
"""The outcome of each item, part by part."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and how far it may be off."""

    value: float
    standard_error: float | None
    """None where too few items were scored to tell."""

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval, value -/+ 1.96 standard errors."""
        if self.standard_error is None:
            return None
        return self.value - Z_95 * self.standard_error, self.value + Z_95 * self.standard_error


def estimate(parts: Parts) -> Estimate:
    """Return the mean of all items and its standard error.

    With n_k items and the sample variance v_k in part k: sqrt(sum (n_k - 1) v_k / sum (n_k - 1) / sum n_k), which is
    sqrt(v / n) for a task without parts.
    """
    total = sum(len(part) for part in parts)
    assert total > 0
    mean = math.fsum(outcome for part in parts for outcome in part) / total
    freedom = total - len(parts)
    if freedom == 0:
        return Estimate(value=mean, standard_error=None)
    squares = math.fsum((outcome - math.fsum(part) / len(part)) ** 2 for part in parts for outcome in part)
    return Estimate(value=mean, standard_error=math.sqrt(squares / freedom / total))


def paired_difference(student: Parts, teacher: Parts) -> Estimate:
    """Return the mean of student - teacher over the items; what both find easy or hard cancels out of its error."""
    pairs = zip(student, teacher, strict=True)
    return estimate([[ours - theirs for ours, theirs in zip(*pair, strict=True)] for pair in pairs])


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over tasks or parts, each counting the same: sqrt(sum of squared errors) / their number."""
    value = math.fsum(entry.value for entry in estimates) / len(estimates)
    errors = [entry.standard_error for entry in estimates]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return Estimate(value=value, standard_error=None)
    return Estimate(value=value, standard_error=math.sqrt(math.fsum(error**2 for error in known)) / len(known))
