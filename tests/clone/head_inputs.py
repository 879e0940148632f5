"""Small random inputs of the head, and what its tests go through."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lrc.clone.head import IGNORED_LABEL, HeadWeights, head_losses

POSITIONS, VOCABULARY, D_STUDENT, D_TEACHER = 7, 11, 3, 5
UPSTREAM = 0.37
"""The gradient that reaches the head from above, so that a backward pass which forgets to scale is found."""

each_weighting = pytest.mark.parametrize(
    ("lm", "kl"), [(1.0, 0.0), (0.0, 1.0), (0.7, 1.3)], ids=["LM only", "KL only", "both"]
)
each_temperature = pytest.mark.parametrize("temperature", [1.0, 40.0])
each_softcap = pytest.mark.parametrize("softcap", [None, 2.0], ids=["plain", "softcap"])


@dataclass
class Inputs:
    student: Tensor
    teacher: Tensor | None
    student_head: Tensor
    teacher_head: Tensor
    labels: Tensor

    def losses(self, weights: HeadWeights, chunk: int | None) -> tuple[Tensor, Tensor, Tensor]:
        return head_losses(
            self.student,
            self.teacher,
            self.student_head,
            self.teacher_head,
            self.labels,
            weights=weights,
            chunk=chunk,
        )

    def gradients(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(UPSTREAM * value, [self.student, self.student_head]))


def make_inputs(
    *, masked: tuple[int, ...] = (1, 4, 6), positions: int = POSITIONS, dtype: torch.dtype = torch.float64
) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    labels = torch.randint(VOCABULARY, (positions,), generator=generator)
    labels[list(masked)] = IGNORED_LABEL
    return Inputs(
        student=random(positions, D_STUDENT).requires_grad_(),
        teacher=random(positions, D_TEACHER),
        student_head=random(VOCABULARY, D_STUDENT).requires_grad_(),
        teacher_head=random(VOCABULARY, D_TEACHER),
        labels=labels,
    )


def plain_losses(inputs: Inputs, weights: HeadWeights) -> tuple[Tensor, Tensor, Tensor]:
    """The formula with whole logits, torch's own losses and autograd; masked rows are not even looked at."""
    valid = inputs.labels != IGNORED_LABEL
    assert inputs.teacher is not None
    logits = (inputs.student @ inputs.student_head.T)[valid]
    teacher_logits = (inputs.teacher @ inputs.teacher_head.T)[valid]
    if weights.softcap is not None:
        logits = torch.tanh(logits / weights.softcap) * weights.softcap
        teacher_logits = torch.tanh(teacher_logits / weights.softcap) * weights.softcap
    lm, kl = (torch.zeros(inputs.labels.shape, dtype=logits.dtype) for _ in range(2))
    lm[valid] = F.cross_entropy(logits, inputs.labels[valid], reduction="none")
    kl[valid] = F.kl_div(
        F.log_softmax(logits / weights.temperature, -1),
        F.softmax(teacher_logits / weights.temperature, -1),
        reduction="none",
    ).sum(-1)
    return weights.lm * lm.sum() + weights.kl * kl.sum(), lm, kl
