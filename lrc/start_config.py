"""The recipe's section `start`: where projections and gains begin."""

from dataclasses import dataclass
from typing import Literal

from lrc.student_config import Correction

StartMethod = Literal["random", "channel", "pca", "calibrated"]
Basis = Literal["sensitive", "principal"]
ChannelScore = Literal["magnitude", "normalised"]


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Start values of the projections and norm gains."""

    method: StartMethod = "calibrated"
    """`random`: N(0, 0.02), published. `channel`: RED. `pca`: principal directions. `calibrated`: layer by layer."""
    tokens: int = 65_536
    """Calibration tokens, taken from the front of the training data (`random` needs none)."""
    channel_score: ChannelScore = "magnitude"
    """What `channel` keeps the largest of: `magnitude` of the stream over 15 rows (RED), or `normalised`, the outputs
    of the norms over all `tokens` (Minitron)."""
    basis: Basis = "sensitive"
    """Directions of the stream that a `calibrated` student keeps: those that the teacher's logits would miss most, by
    gradients over some of `tokens` (`sensitive`), or those of most energy (`principal`, as `pca` always does)."""
    outlier_channels: int = 0
    """Channels of the teacher's stream kept as identity columns of the basis, those with the largest mean square."""
    correction_passes: int = 2
    """Passes over `tokens` in which a `calibrated` start tunes each MLP by gradient steps, where all its weights have
    corrections (`student.correction: mlp`)."""
    rotation: bool = True
    """Rotate the channels of a `calibrated` student: the same function, with fewer outliers to quantise."""


def start_problems(start: StartConfig, method: str, *, hidden_size: int, correction: Correction) -> list[str]:
    """Check what the types can't say; returns a line a problem.

    Args:
        start: The section.
        method: The recipe's.
        hidden_size: The student's.
        correction: The student's.
    """
    problems, channels = [], start.outlier_channels
    if channels > hidden_size:
        problems.append(f"start.outlier_channels must be at most student.hidden_size = {hidden_size}, found {channels}")
    if correction != "none" and (method, start.method) != ("clone", "calibrated"):
        problems.append(
            f"student.correction = {correction} needs method = clone and start.method = calibrated, which fits it, "
            f"found {method} and {start.method}"
        )
    if correction == "mlp" and start.correction_passes < 1:
        problems.append(
            f"start.correction_passes must be at least 1 with student.correction = mlp, found {start.correction_passes}"
            ": nothing else fits the corrections of readers; take student.correction=outputs"
        )
    return problems
