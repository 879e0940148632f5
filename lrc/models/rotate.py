"""A rotation of the student's channels: the same function, with what large channels hold spread over all of them.

A student made along principal directions has channels whose sizes differ a thousandfold. Formats of few bits give each
block of 32 neighbours one scale, so the largest rounds the others away. A norm that divides by the root mean square
commutes with a rotation `R`, as long as its gains are one: with `P R` for every projection `P` the student's stream is
`x_S R` and its logits are what they were (Ashkboos et al. 2024, QuaRot, arXiv 2404.00456, for finished models).
"""

import torch
from torch import Tensor

from lrc.models.pair_model import PairModel
from lrc.models.part import is_bias

PROBE_TOKENS = 64
LARGEST_CHANGE, LARGEST_CHANGE_OF_HALF = 1e-3, 5e-2
"""Of the logits, as a share of their largest; the second in dtypes of two bytes, which round by more."""


def random_rotation(size: int, seed: int) -> Tensor:
    """Draw an orthogonal matrix, `[size, size]` float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, size, dtype=torch.float64, generator=generator)
    orthogonal: Tensor = torch.linalg.qr(drawn)[0]
    return orthogonal


@torch.no_grad()
def rotate_student(pair: PairModel, ids: Tensor, *, seed: int) -> str | None:
    """Rotate the student's channels in place, and prove on some tokens that its logits have not changed.

    Args:
        pair: A filled pair.
        ids: Tokens to prove it on, `[batch, seq]`; the first 64 of the first row are used.
        seed: Of the rotation.

    Returns:
        None, or why the student was left as it was: its norms have gains or biases, or subtract a mean.
    """
    unit = pair.architecture.scales.unit_gain
    for name, value in pair.trained().items():
        if name.startswith("gains.") and not bool((value == (0.0 if is_bias(name) else unit)).all()):
            return f"{name.removeprefix('gains.')} multiplies channels one by one"
    probe = ids[:1, :PROBE_TOKENS].to(next(pair.parameters()).device)
    was_training = pair.training
    pair.eval()
    before = pair.logits(probe)[0]
    rotation = random_rotation(pair.student_config.hidden_size, seed).to(before.device)
    _turn(pair, rotation)
    change = float((pair.logits(probe)[0] - before).abs().max() / before.abs().max())
    reason = None
    if not change <= (LARGEST_CHANGE if before.dtype.itemsize > 2 else LARGEST_CHANGE_OF_HALF):
        _turn(pair, rotation.T)
        reason = f"its norms do more than divide (a rotation changes its logits by {change:.1e} of the largest)"
    pair.train(was_training)
    return reason


def _turn(pair: PairModel, rotation: Tensor) -> None:
    for name, value in pair.trained().items():
        if name.startswith("projections."):
            value.copy_(value.double() @ rotation)
