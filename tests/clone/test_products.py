"""Products of values that came from bfloat16 lose nothing on the fast units; the setting does not outlive its block."""

import pytest
import torch

from lrc.clone.products import exact_products, rounded_products


def settings() -> tuple[str, str]:
    return torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
