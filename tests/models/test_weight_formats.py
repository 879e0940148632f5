"""Packed matrices: near what they were, exact where they can be, torchao's own codes, the bytes that are counted."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lrc.models import weight_formats
from lrc.models.weight_formats import NF4_CODE, WeightFormat, pack, packed_bytes, restore

FORMATS: tuple[WeightFormat, ...] = ("native", "int8", "nf4")
torchao_quantization = pytest.importorskip("torchao.quantization")


def matrix(rows: int = 256, columns: int = 192, dtype: torch.dtype = torch.float32) -> Tensor:
    """A matrix whose rows differ in size, with a row and a block of zeros."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows)[:, None]
    made[3] = 0
    made[7, :64] = 0
    return made.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", FORMATS)
def test_a_restored_matrix_has_shape_dtype_and_zeros_of_the_first(format: WeightFormat, dtype: torch.dtype) -> None:
    weight = matrix(dtype=dtype)
    packed = pack(weight, format)
    found = restore(packed)
    assert (found.shape, found.dtype, packed.dtype) == (weight.shape, dtype, dtype)
    assert packed.num_bytes == packed_bytes(tuple(weight.shape), dtype, format)
    assert not found[3].any()
    assert not found[7, :64].any()
    assert found.isfinite().all()


def test_a_native_matrix_is_itself() -> None:
    weight = matrix()
    assert restore(pack(weight, "native")) is weight


def test_int8_is_within_half_a_step_of_each_row_and_exact_on_its_grid() -> None:
    weight = matrix()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((restore(pack(weight, "int8")) - weight).abs() <= step * 0.5001).all()
    grid = torch.arange(-127, 128)[None].float() * torch.tensor([[0.5], [3.0]])
    assert torch.equal(restore(pack(grid, "int8")), grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_no_worse_than_torchao_s(dtype: torch.dtype) -> None:
    """The scale of torchao is `max / 127.5`, so the values differ, but not their error."""
    weight = matrix(dtype=dtype)
    holder = torch.nn.Linear(192, 256, bias=False)
    holder.weight = torch.nn.Parameter(weight, requires_grad=False)
    config = torchao_quantization.Int8WeightOnlyConfig(set_inductor_config=False)
    torchao_quantization.quantize_(holder, config)
    theirs, ours = (
        made.float() - weight.float() for made in (holder.weight.dequantize(), restore(pack(weight, "int8")))
    )
    assert float(ours.square().mean()) <= 1.05 * float(theirs.square().mean())
    assert float(ours.square().mean().sqrt() / weight.float().square().mean().sqrt()) < 0.01


def test_nf4_takes_torchao_s_codes_and_keeps_its_scales_exactly() -> None:
    weight = matrix().abs() + 0.01  # torchao divides zeros by zeros
    theirs = torchao_quantization.NF4Tensor.from_tensor(weight, 64, 256)
    ours = pack(weight, "nf4")
    same = (ours.pieces[0] == theirs.quantized_data).float().mean()
    assert same > 0.995  # torchao's code values have four digits, so values near a border fall to its other side
    assert torch.equal(ours.pieces[1][:, 0], weight.view(-1, 64).abs().amax(1))
    errors = [float((made - weight).square().mean()) for made in (restore(ours), theirs.get_original_weight())]
    assert errors[0] <= errors[1]


def test_nf4_gives_back_what_its_code_can_say_and_a_tail_that_fills_no_block() -> None:
    code = torch.tensor(NF4_CODE)
    weight = (code.repeat(7) * 2.5).view(7, 16)  # 112 values: one block and three quarters of another
    assert torch.equal(restore(pack(weight, "nf4")), weight)
    assert pack(weight, "nf4").num_bytes == 2 * (32 + 4)


def test_the_code_of_nf4_is_made_once_for_a_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = [pack(matrix(dtype=dtype), "nf4") for dtype in (torch.float32, torch.bfloat16)]
    expected = [restore(each) for each in packed]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("on a GPU the host would wait")

    monkeypatch.setattr(torch, "tensor", refuse)
    assert all(torch.equal(restore(each), wanted) for each, wanted in zip(packed, expected, strict=True))


def test_the_code_of_a_plan_s_fake_matrices_is_not_kept() -> None:
    weight_formats._kept_nf4_code.cache_clear()
    with FakeTensorMode():
        assert isinstance(restore(pack(torch.ones(4, 64), "nf4")), FakeTensor)
    assert torch.equal(restore(pack(torch.ones(4, 64), "nf4")), torch.ones(4, 64))
    with FakeTensorMode():
        assert isinstance(restore(pack(torch.ones(4, 64), "nf4")), FakeTensor)


@pytest.mark.parametrize(("format", "limit"), [("int8", 0.01), ("nf4", 0.1)])
def test_the_error_of_a_normal_matrix_is_the_usual_one(format: WeightFormat, limit: float) -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    assert limit / 3 < float((restore(pack(weight, format)) - weight).square().mean().sqrt()) < limit
