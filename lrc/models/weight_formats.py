"""Formats that a frozen matrix is held in: packed once, restored wherever it is used.

Plain torch on plain tensors, so that a packed matrix runs on every device and has sizes on fake tensors (`lrc plan`).
The formats are the usual ones; tests hold them against torchao's, whose own classes ask for matrices of a multiple of
16,384 values for nf4 and take 13 bytes a value to restore one.
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

WeightFormat = Literal["native", "int8", "nf4"]

INT8_LARGEST = 127
NF4_BLOCK = 64
"""Values that share a scale (QLoRA)."""
# fmt: off
NF4_CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on
"""The 16 values of NormalFloat4, QLoRA (arXiv 2305.14314), appendix E."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A matrix in a format."""

    format: WeightFormat
    shape: torch.Size
    dtype: torch.dtype
    """Of the matrix before and after; scales have it too."""
    pieces: tuple[Tensor, ...]
    """`native`: the matrix. `int8`: values `[out, in]` and scales `[out, 1]`. `nf4`: pairs of codes and scales."""

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(piece.nbytes for piece in self.pieces)


@torch.no_grad()
def pack(weight: Tensor, format: WeightFormat) -> Packed:
    """Bring a matrix `[out, in]` into a format, on the device that it lies on.

    `int8`: `q = round(W / s)`, `s = max |W| / 127` over a row. `nf4`: the code nearest to `W / s`, `s = max |W|` over
    64 values in a row (the matrix read line by line, zeros added at its end). Scales are rounded to the matrix's dtype
    before they divide, so what is restored has no error but that of `q`.
    """
    pieces: tuple[Tensor, ...] = (weight,)
    exact = torch.promote_types(weight.dtype, torch.float32)
    if format == "int8":
        scale = _above_zero(weight.abs().amax(1, keepdim=True) / INT8_LARGEST)
        steps = (weight.to(exact) / scale.to(exact)).round().clamp(-INT8_LARGEST, INT8_LARGEST)
        pieces = (steps.to(torch.int8), scale)
    elif format == "nf4":
        flat = weight.flatten()
        blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK)
        scale = _above_zero(blocks.abs().amax(1, keepdim=True))
        code = _nf4_code(weight, exact)
        borders = (code[1:] + code[:-1]) / 2
        found = torch.bucketize(blocks.to(exact) / scale.to(exact), borders, out_int32=True)
        codes = found.to(torch.uint8).view(-1, 2)
        pieces = (codes[:, 0] << 4 | codes[:, 1], scale)
    return Packed(format=format, shape=weight.shape, dtype=weight.dtype, pieces=pieces)


@torch.no_grad()
def restore(packed: Packed) -> Tensor:
    """Form the matrix, `[out, in]` in its dtype; of a native one, itself."""
    if packed.format == "native":
        return packed.pieces[0]
    values, scale = packed.pieces
    if packed.format == "int8":
        return values.to(packed.dtype).mul_(scale)
    code = _nf4_code(values, packed.dtype)
    pairs = torch.cartesian_prod(code, code)  # [256, 2]: what both codes of a byte stand for
    blocks = pairs.index_select(0, values.int()).view(-1, NF4_BLOCK).mul_(scale)
    return blocks.flatten()[: prod(packed.shape)].view(packed.shape)


def packed_bytes(shape: tuple[int, ...], dtype: torch.dtype, format: WeightFormat) -> int:
    """Count the bytes of a matrix `[out, in]` in a format."""
    if format == "native":
        return prod(shape) * dtype.itemsize
    if format == "int8":
        return prod(shape) + shape[0] * dtype.itemsize
    return -(-prod(shape) // NF4_BLOCK) * (NF4_BLOCK // 2 + dtype.itemsize)


def _nf4_code(beside: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the 16 values of nf4 on the device of a tensor."""
    if isinstance(beside, FakeTensor):  # what a plan makes is fake too, and must not be kept
        return torch.tensor(NF4_CODE, device=beside.device, dtype=dtype)
    return _kept_nf4_code(beside.device, dtype)


@cache
def _kept_nf4_code(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Make the values once: numbers from Python let the host wait for a GPU, and a step restores every matrix."""
    return torch.tensor(NF4_CODE, device=device, dtype=dtype)


def _above_zero(scale: Tensor) -> Tensor:
    """Let zeros be divided by something."""
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)
