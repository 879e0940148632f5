"""Run Liger's kernel beside the head's own formula and print how far apart they are, as JSON; on a CPU, interpreted.

Not a test module: `test_liger_head.py` runs it in a process of its own, where TRITON_INTERPRET is set before triton is
imported.
"""

import json
from typing import Any

import torch

from lrc.clone.head import IGNORED_LABEL, HeadWeights, head_losses
from lrc.models.liger_head import liger_losses

UPSTREAM = 0.37
CELLS: tuple[dict[str, Any], ...] = (
    {"direction": "forward", "temperature": 1.0, "lm": 0.0},
    {"direction": "forward", "temperature": 3.0, "lm": 0.4},
    {"direction": "reverse", "temperature": 1.0, "lm": 0.4},
    {"direction": "reverse", "temperature": 3.0, "lm": 0.0},
)


def distances(cell: dict[str, Any], labels: torch.Tensor) -> list[float]:
    """Return the largest difference over the largest value: objective, LM, summed KL, two gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((9, 6), (9, 8), (97, 6), (97, 8))
    student, teacher, head, teacher_head = (torch.randn(*shape, generator=generator) for shape in shapes)
    student.requires_grad_()
    head.requires_grad_()
    found = []
    for losses in (liger_losses, head_losses):
        total, lm, kl = losses(student, teacher, head, teacher_head, labels, weights=HeadWeights(kl=1.3, **cell))
        found.append([total, lm, kl.sum(), *torch.autograd.grad(UPSTREAM * total, (student, head))])
    pairs = [(one.detach(), other.detach()) for one, other in zip(*found, strict=True)]
    return [float((one - other).abs().max() / other.abs().max().clamp(min=1e-30)) for one, other in pairs]


def main() -> None:
    labels = torch.randint(97, (9,), generator=torch.Generator().manual_seed(1))
    labels[[2, 5]] = IGNORED_LABEL
    nothing = torch.full_like(labels, IGNORED_LABEL)
    print(json.dumps([distances(cell, each) for each in (labels, nothing) for cell in CELLS]))


if __name__ == "__main__":
    main()
