"""Float32 products on the fast units of bfloat16 and TF32.

A product of two bfloat16 values is exact in float32. So where both factors came from bfloat16 a float32 product that is
summed in float32 loses nothing on units that read bfloat16 (CPU) or TF32 (GPU), and runs several times as fast there.
Where a machine has no such units, torch computes as ever.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

TILE_BYTES = 6 * 2**20
"""Of a matrix in float32: what `exact_product` converts at a time on a CPU, about what a core's caches hold."""


def exact_products(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Let float32 products of values that came from `dtype` run on the fast units, if that is bfloat16.

    A factor that did not come from it, a gradient, is rounded to bfloat16's 8 bits (TF32's 11), as it is in all other
    products of a bfloat16 model; sums stay in float32.
    """
    return rounded_products() if dtype == torch.bfloat16 else nullcontext()


@contextmanager
def rounded_products() -> Iterator[None]:
    """Let float32 products round their factors to bfloat16 (CPU) or TF32 (GPU); sums and results stay float32."""
    backends = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend, precision in zip(backends, ("bf16", "tf32"), strict=True):
        backend.fp32_precision = precision
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def exact_product(rows: Tensor, matrix: Tensor, *, out: Tensor) -> Tensor:
    """Compute `rows @ matrix.T` in the dtype and memory of `out`, bfloat16 factors on the fast units; returns `out`.

    Torch on a CPU has no product of bfloat16 with a float32 result, so the matrix is converted a tile at a time: a
    float32 copy of a head would be the largest tensor of a step.

    Args:
        rows: `[n, k]`.
        matrix: `[m, k]`.
        out: `[n, m]`, where the result goes.
    """
    if rows.dtype == matrix.dtype == out.dtype:
        return torch.mm(rows, matrix.T, out=out)
    if isinstance(out, FakeTensor):  # a plan's: one product to count, of any machine
        return out.copy_(torch.mm(rows.to(matrix.dtype), matrix.T))
    if rows.is_cuda and rows.dtype == matrix.dtype and out.dtype == torch.float32:
        return torch.mm(rows, matrix.T, out.dtype, out=out)
    rows, count = rows.to(out.dtype), _tile_rows(out, matrix.shape[1], len(matrix))
    space = out.new_empty(min(count, len(matrix)), matrix.shape[1])
    with exact_products(matrix.dtype):
        for start in range(0, len(matrix), count):
            tile = matrix[start : start + count]
            torch.mm(rows, space[: len(tile)].copy_(tile).T, out=out[:, start : start + len(tile)])
    return out


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left.T @ right` to `total`; of bfloat16 factors a product of one call is rounded to bfloat16 first.

    Args:
        total: `[m, k]`, in float32 or the factors' dtype.
        left: `[n, m]`.
        right: `[n, k]`.
    """
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
        return
    count = _tile_rows(total, total.shape[1], len(total))
    for start in range(0, len(total), count):
        total[start : start + count].add_(left[:, start : start + count].T @ right)


def stays_in_cache(tensor: Tensor) -> bool:
    """Whether work on a tensor goes through a core's cache in parts: on a CPU; a plan's tensors are of any machine."""
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


def _tile_rows(like: Tensor, width: int, rows: int) -> int:
    """Return how many of a matrix's rows are worked off at a time: what stays in a core's cache, or all."""
    return max(1, TILE_BYTES // (like.element_size() * width) if stays_in_cache(like) else rows)
