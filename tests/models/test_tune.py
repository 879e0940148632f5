"""Adam's steps over batches against a plain loop in float64."""

import pytest
import torch
from torch import Tensor

from lrc.models import tune
from lrc.models.tune import tuned

BEGUN = {"up": torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), "down": torch.full((3, 6), 0.5)}
INPUTS = torch.randn(9, 5, 4, generator=torch.Generator().manual_seed(1))
WANTED = torch.randn(9, 5, 3, generator=torch.Generator().manual_seed(2))


def loss(place: int, weights: dict[str, Tensor]) -> Tensor:
    made = (INPUTS[place].to(weights["up"].dtype) @ weights["up"].T).tanh() @ weights["down"].T
    return (made - WANTED[place]).square().sum()


def by_hand(passes: int, batches_a_step: int) -> dict[str, Tensor]:
    """Adam as its paper has it (arXiv 1412.6980, algorithm 1), with the rate that `tuned` states."""
    weights = {name: weight.double().clone() for name, weight in BEGUN.items()}
    rates = {name: float(weight.square().mean().sqrt()) / weight.shape[1] ** 0.5 for name, weight in weights.items()}
    first, second = ({name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    steps = []
    for _ in range(passes):
        order = torch.randperm(len(INPUTS), generator=generator).tolist()
        steps += [order[begin : begin + batches_a_step] for begin in range(0, len(order), batches_a_step)]
    for step, places in enumerate(steps, 1):
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        torch.stack([loss(place, leaves) for place in places]).sum().backward()
        share = min(1.0, step / 5) * (1 - (step - 1) / len(steps))
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            first[name] = 0.9 * first[name] + 0.1 * leaf.grad
            second[name] = 0.95 * second[name] + 0.05 * leaf.grad.square()
            mean, size = first[name] / (1 - 0.9**step), (second[name] / (1 - 0.95**step)).sqrt()
            weights[name] -= rates[name] * share * mean / (size + 1e-8)
    return weights


@pytest.mark.parametrize(("step_tokens", "batches_a_step"), [(1, 1), (6, 2), (20, 4), (1000, 9)])
def test_the_steps_are_adam_s_at_a_rate_in_units_of_each_matrix(
    monkeypatch: pytest.MonkeyPatch, step_tokens: int, batches_a_step: int
) -> None:
    monkeypatch.setattr(tune, "STEP_TOKENS", step_tokens)
    before = {name: weight.clone() for name, weight in BEGUN.items()}
    with torch.no_grad():  # as the walk runs
        found = tuned(BEGUN, loss, [5] * 9, passes=3)
    expected = by_hand(3, batches_a_step)
    for name, weight in found.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-4, atol=1e-5)
        assert not weight.requires_grad
        assert torch.equal(BEGUN[name], before[name])
        assert not torch.equal(weight, before[name])


def test_the_loss_falls_and_the_masters_are_float32() -> None:
    begun = {name: weight.bfloat16() for name, weight in BEGUN.items()}
    found = tuned(begun, loss, [5] * 9, passes=40)
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    ends = [
        sum(float(loss(place, weights)) for place in range(9))
        for weights in ({name: weight.float() for name, weight in begun.items()}, found)
    ]
    assert ends[1] < 0.8 * ends[0]
