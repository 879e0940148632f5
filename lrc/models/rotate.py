"""A rotation of the student's channels: the same function, with what large channels hold spread over all of them.

A student made along principal directions has channels whose sizes differ a thousandfold. Formats of few bits give each
block of 32 neighbours one scale, so the largest rounds the others away. A norm that divides by the root mean square
commutes with a rotation `R`, as long as its gains are one: with `P R` for every projection `P`, and `R.T C` or `C R`
for every correction `C` of a writer or reader, the student's stream is `x_S R` and its logits are what they were
(Ashkboos et al. 2024, QuaRot, arXiv 2404.00456, for finished models).
"""

import torch
from torch import Tensor

from lrc.config import ObjectiveConfig
from lrc.models.pair_model import PairModel
from lrc.models.part import is_bias
from lrc.models.tiny import narrow_size, random_model, tiny_config

PROBE_TOKENS = 64
LARGEST_CHANGE = 1e-3
"""Of the logits, as a share of their largest, in float32."""


def random_rotation(size: int, seed: int) -> Tensor:
    """Draw an orthogonal matrix, `[size, size]` float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, size, dtype=torch.float64, generator=generator)
    orthogonal: Tensor = torch.linalg.qr(drawn)[0]
    return orthogonal


@torch.no_grad()
def rotate_student(pair: PairModel, *, seed: int) -> str | None:
    """Rotate the student's channels in place.

    That the family's logits don't change is proven before, in float32, on a tiny random model: the pair's own dtype may
    round by more than a norm that subtracts a mean would show.

    Args:
        pair: A filled pair.
        seed: Of the rotation.

    Returns:
        None, or why the student was left as it was: its norms have gains or biases, or subtract a mean.
    """
    unit = pair.architecture.scales.unit_gain
    for name, value in pair.trained().items():
        if name.startswith("gains.") and not bool((value == (0.0 if is_bias(name) else unit)).all()):
            return f"{name.removeprefix('gains.')} multiplies channels one by one"
    change = rotation_change(_tiny_pair(pair), seed=seed)
    if not change <= LARGEST_CHANGE:
        return (
            f"its norms do more than divide (a rotation changes a tiny model's logits by {change:.1e} of the largest)"
        )
    _turn(pair, random_rotation(pair.student_config.hidden_size, seed))
    return None


def rotation_change(pair: PairModel, *, seed: int) -> float:
    """Rotate a pair, and return the largest change of its logits as a share of their largest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, pair.student_config.vocab_size, (1, PROBE_TOKENS), generator=generator)
    before = pair.logits(ids)[0]
    _turn(pair, random_rotation(pair.student_config.hidden_size, seed))
    return float((pair.logits(ids)[0] - before).abs().max() / before.abs().max())


def _tiny_pair(pair: PairModel) -> PairModel:
    """Make a pair of the same family and variant, tiny, its projections random and its gains as a start leaves them."""
    teacher = random_model(tiny_config(pair.teacher_config))
    tiny = PairModel(
        teacher,
        hidden_size=narrow_size(teacher.config),
        variant=pair.variant,
        objective=ObjectiveConfig(without=("all",)),
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in tiny.stored().items():
        if name.startswith(("projections.", "corrections.")):
            value.copy_(torch.randn(value.shape, generator=generator) / value.shape[0] ** 0.5)
        else:
            value.fill_(0.0 if is_bias(name) else pair.architecture.scales.unit_gain)
    return tiny


def _turn(pair: PairModel, rotation: Tensor) -> None:
    projections = [value for name, value in pair.trained().items() if name.startswith("projections.")]
    rotation = rotation.to(projections[0].device)
    for value in projections:
        value.copy_(value.double() @ rotation)
    for layer in pair.layers:
        for name in layer.plan.corrections:
            value = layer.correction(name)
            axis = layer.plan.merges[name][1]
            value.copy_(rotation.T @ value.double() if axis == 0 else value.double() @ rotation)
