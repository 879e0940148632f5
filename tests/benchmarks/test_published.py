"""The published step written plainly gives the package's losses and gradients: two ways to one number."""

from dataclasses import replace

import pytest
import torch

from benchmarks.speed.shapes import SHAPES, Shape
from benchmarks.speed.ways import Bench, StepLosses

QWEN = replace(SHAPES["tiny"], model_type="qwen2", is_tied=False)
TIED = replace(SHAPES["tiny"], tie_projection=True)


def bench_of(shape: Shape) -> Bench:
    torch.manual_seed(0)
    bench = Bench(shape, dtype=torch.float32, device=torch.device("cpu"), most_batches=2)
    with torch.no_grad():  # biases of zero and losses too alike to tell would hide a mistake
        for parameter in bench.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if not shape.is_tied:
            bench.teacher.get_parameter("lm_head.weight").mul_(20)
        bench.teacher.get_parameter("model.embed_tokens.weight").mul_(20)  # else KL at temperature 40 is rounding noise
        for value in bench.engine.trained.values():
            value.add_(0.1 * torch.randn_like(value))
    return bench


def gradients(bench: Bench) -> dict[str, torch.Tensor]:
    """What a step hands to the optimiser."""
    return {name: value.grad.clone() for name, value in bench.engine.trained.items() if value.grad is not None}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("shape", [SHAPES["tiny"], QWEN, TIED], ids=["llama", "qwen2-untied", "tied-projection"])
def test_the_plain_formulation_has_our_losses_and_gradients(
    shape: Shape, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(shape)
    found: list[tuple[StepLosses, dict[str, torch.Tensor]]] = []
    kept: dict[str, torch.Tensor] = {}

    def refuse(norm: float) -> bool:
        kept.update(gradients(bench))
        return False

    monkeypatch.setattr(bench, "update", lambda: bench.engine.update(1e-4, refuse))
    for step in (lambda: bench.ours(accumulation), lambda: bench.plain(accumulation)):
        kept.clear()
        found.append((step(), dict(kept)))
    (ours, our_gradients), (plain, plain_gradients) = found
    for name, value in vars(ours).items():
        assert getattr(plain, name) == pytest.approx(value, rel=1e-5), name
    assert ours.kl > 0.1
    assert ours.clone > 1e-3
    assert set(our_gradients) == set(plain_gradients) == set(bench.engine.trained)
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(plain_gradients[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_plain_formulation_moves_the_same_weights_by_the_same_step() -> None:
    ways = {}
    for name in ("ours", "plain"):
        bench = bench_of(SHAPES["tiny"])
        getattr(bench, name)(1)
        ways[name] = {key: value.detach().clone() for key, value in bench.engine.trained.items()}
    for key, value in ways["ours"].items():
        # a step is 1e-4 long; rounding of a gradient near AdamW's epsilon moves one value by 3e-6
        torch.testing.assert_close(ways["plain"][key], value, rtol=0, atol=1e-5)
