"""Products of values that came from bfloat16 lose nothing on the fast units; the setting does not outlive its block."""

import pytest
import torch

from lrc.clone import products
from lrc.clone.products import add_product, exact_product, exact_products, rounded_products


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


@pytest.mark.parametrize("tile", [1, 4 * 288 * 7, 2**20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_product_is_kept_in_float32_whatever_its_tiles(
    monkeypatch: pytest.MonkeyPatch, tile: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(products, "TILE_BYTES", tile)
    rows, matrix = drawn(5, 288).to(dtype), drawn(65, 288, seed=1).to(dtype)
    expected = rows.double() @ matrix.double().T
    found = exact_product(rows, matrix, out=torch.full((5, 65), torch.nan))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    rounded = (rows @ matrix.T).double()
    if dtype == torch.bfloat16:  # what a plain product would have lost
        assert float((rounded - expected).abs().max()) > 1e3 * float((found - expected).abs().max())


@pytest.mark.parametrize("tile", [1, 4 * 288 * 7, 2**20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_products_add_up_in_the_totals_dtype(monkeypatch: pytest.MonkeyPatch, tile: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(products, "TILE_BYTES", tile)
    left, right = drawn(9, 65).to(dtype), drawn(9, 288, seed=1).to(dtype)
    total = torch.full((65, 288), 1.0, dtype=torch.promote_types(dtype, torch.float32))
    expected = 1 + 2 * left.double().T @ right.double()
    for _ in range(2):
        add_product(total, left, right)
    bound = {torch.bfloat16: 2.0**-8, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(total.double(), expected, rtol=0, atol=bound * float(expected.abs().max()))
