"""Float32 products on the fast units of bfloat16 and TF32.

A product of two bfloat16 values is exact in float32. So where both factors came from bfloat16 a float32 product that is
summed in float32 loses nothing on units that read bfloat16 (CPU) or TF32 (GPU), and runs several times as fast there.
Where a machine has no such units, torch computes as ever.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


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
