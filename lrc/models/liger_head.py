"""Liger's kernel for the head's KL (`train.head_kernel`), where a GPU and the package `liger-kernel` are there.

Like `clone/head.py` it takes hidden states and heads, holds logits of a chunk at a time and forms the gradient in the
forward pass. The LM loss stays `clone/head.py`'s, and so does every measure without gradient.
"""

from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from packaging.version import Version
from torch import Tensor

from lrc.clone.head import IGNORED_LABEL, HeadWeights, head_losses
from lrc.config import HeadKernel
from lrc.errors import ConfigError
from lrc.method_config import ObjectiveConfig

PACKAGES = ("liger_kernel", "triton")
OLDEST = "0.8.5"
"""Of liger-kernel: older ones may not sum the head's gradient in float32 (`accum_dtype`)."""
TEACHER_SHARES = {"forward": 0.0, "reverse": 1.0}
"""Of a KL's direction: the share `beta` of the teacher in the mixture that Liger's generalised JSD compares with. It is
KL(teacher || student) at 0 and KL(student || teacher) at 1 (liger_kernel/ops/jsd.py); between them it is not `skewed`.
"""


def takes_liger(wanted: HeadKernel, objective: ObjectiveConfig, softcap: float | None, device: torch.device) -> bool:
    """Say whether a run's KL is computed by Liger.

    Args:
        wanted: The recipe's `train.head_kernel`.
        objective: What the method makes of the recipe's.
        softcap: The teacher's cap on logits.
        device: Where the run is.

    Raises:
        ConfigError: Liger is asked for by name and can't compute this run's KL; the message has every reason.
    """
    reasons = [] if wanted == "own" else _obstacles(objective, softcap, device)
    if wanted == "liger" and reasons:
        raise ConfigError(
            f"train.head_kernel = liger can't compute this run's KL: {'; '.join(reasons)}. Take auto or own."
        )
    return wanted != "own" and not reasons


def _obstacles(objective: ObjectiveConfig, softcap: float | None, device: torch.device) -> list[str]:
    reasons = []
    if device.type != "cuda":
        reasons.append(f"it runs on a GPU, and the run is on {device.type}")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        reasons.append(f"{' and '.join(missing)} can't be imported (pip install liger-kernel)")
    elif (found := _liger_version()) is None or Version(found) < Version(OLDEST):
        reasons.append(
            f"liger-kernel must be of version {OLDEST} or newer, found {found or 'one that pip does not know'} "
            "(pip install -U liger-kernel)"
        )
    if not objective.kl_weight:
        reasons.append("no KL is trained")
    if objective.kl_direction not in TEACHER_SHARES:
        reasons.append(f"it has no objective.kl_direction = {objective.kl_direction}")
    if softcap is not None:
        reasons.append(f"it can't cap logits, as the teacher does at {softcap}")
    return reasons


def _liger_version() -> str | None:
    try:
        return version("liger-kernel")
    except PackageNotFoundError:
        return None


def liger_losses(
    student: Tensor,
    teacher: Tensor | None,
    student_head: Tensor,
    teacher_head: Tensor,
    labels: Tensor,
    *,
    weights: HeadWeights,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what `head_losses` does, with the KL by Liger; in float32.

    Liger returns the mean over labelled positions, at the temperature, not multiplied by `T^2`, and sums the head's
    gradient in float32 if told to.

    Returns:
        As `head_losses`; the KL of each labelled position is their mean, for Liger knows no other.
    """
    assert teacher is not None
    assert weights.softcap is None
    of_lm = (student, student_head) if weights.lm else (student.detach(), student_head.detach())
    total, lm, _ = head_losses(of_lm[0], None, of_lm[1], teacher_head, labels, weights=replace(weights, kl=0.0))
    kernel = import_module("liger_kernel.transformers").LigerFusedLinearJSD(
        jsd_beta=TEACHER_SHARES[weights.direction],
        ignore_index=IGNORED_LABEL,
        temperature=weights.temperature,
        accum_dtype=torch.float32,
    )
    mean = kernel(student, student_head, teacher, teacher_head, labels)
    is_labelled = (labels != IGNORED_LABEL).to(mean.dtype)
    return total + weights.kl * is_labelled.sum() * mean, lm, mean.detach() * is_labelled
