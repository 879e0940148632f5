"""Products of values that came from bfloat16 lose nothing on the fast units; the setting does not outlive its block."""

import pytest
import torch

from lrc.clone.products import exact_products, rounded_products
from lrc.training.optimizer import Muon, orthogonalise


def settings() -> tuple[str, str]:
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two steps are within a twentieth; singular values of a step lie anywhere in 0.7 to 1.2 as it is."""
    return float((found - expected).norm()) < 0.05 * float(expected.norm())


def test_products_of_bfloat16_values_are_those_of_float32() -> None:
    left, right = (drawn(65, 288, seed=seed).bfloat16().float() for seed in (0, 1))
    expected = left.double() @ right.double().T
    with exact_products(torch.bfloat16):
        found = left @ right.T
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def test_other_dtypes_compute_as_ever() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16):  # float16 has 3 bits more than bfloat16
        with exact_products(dtype):
            assert settings() == ("none", "none")


def test_the_setting_ends_with_the_block_and_with_an_error() -> None:
    before = settings()
    with rounded_products():
        assert settings() == ("bf16", "tf32")
        with rounded_products():
            pass
        assert settings() == ("bf16", "tf32")
    assert settings() == before
    with pytest.raises(RuntimeError), rounded_products():
        raise RuntimeError
    assert settings() == before


def test_muon_s_steps_point_where_those_of_float32_do() -> None:
    gradients = drawn(3, 96, 48)
    with rounded_products():
        found = orthogonalise(gradients)
    expected = orthogonalise(gradients)
    assert found.dtype == torch.float32
    assert alike(found, expected)
    start = drawn(96, 48, seed=9)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    for weight, rounds in zip(weights, (False, True), strict=True):
        weight.grad = gradients[0]
        Muon([weight], lr=1e-2, betas=(0.9, 0.999), rounds=rounds).step()
        assert not torch.equal(weight, start)
    assert alike(weights[1].detach() - start, weights[0].detach() - start)
