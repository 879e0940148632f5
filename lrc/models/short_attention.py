"""The gradient of attention over short rows on a CPU, by plain matrix products.

The forward pass is torch's own. Its flash kernel for CPUs is slow backward on rows of a few hundred positions; there
scores are formed again by products, a block of positions at a time, and keys that no position of a block sees are left
out. Query, key, value and mask are all that is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lrc.clone.products import exact_products

LONGEST = 512
"""Positions of a row up to which products are the faster (docs/performance.md section 7)."""
ROWS = 128
"""Positions of a row whose scores are held at once."""
SCORES = 2**21
"""Scores that are held at once, of several rows of a batch; 8 MiB."""
MASKED = -1e30
"""Score of a key that isn't seen; finite, for a row that sees nothing."""


class ShortAttention(TorchFunctionMode):
    """Inside it gradients of `scaled_dot_product_attention` are computed here where that is faster."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Do as `scaled_dot_product_attention`; where it is faster the gradient is `attention_gradients`.

    Args:
        query: `[batch, heads, length, width]`.
        key: `[batch, key heads, keys, width]`.
        value: `[batch, key heads, keys, value width]`.
        attn_mask: As torch takes it.
        dropout_p: As torch takes it.
        is_causal: As torch takes it.
        scale: Of scores; None: `1 / sqrt(width)`.
        enable_gqa: Several heads may share a key head.
    """
    if dropout_p == 0 and is_short(query, key, value, attn_mask, is_causal=is_causal):
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        found: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]  # torch's own
            query, key, value, attn_mask, is_causal, factor, enable_gqa
        )
        return found
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def is_short(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool) -> bool:
    """Whether `attention_gradients` takes this and is faster: bfloat16 on a CPU, at most `LONGEST` positions."""
    if query.device.type != "cpu" or any(tensor.dtype != torch.bfloat16 for tensor in (query, key, value)):
        return False
    if query.dim() != 4 or max(query.shape[2], key.shape[2]) > LONGEST or query.shape[0] != key.shape[0]:
        return False
    if mask is not None and (mask.shape[2:] != (query.shape[2], key.shape[2]) or mask.requires_grad or mask.dim() != 4):
        return False
    needs_gradient = query.requires_grad or key.requires_grad or value.requires_grad
    return torch.is_grad_enabled() and needs_gradient and (not is_causal or query.shape[2] == key.shape[2])


class _Attention(torch.autograd.Function):
    """torch's forward, `attention_gradients` backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float,
        enable_gqa: bool,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.is_causal, ctx.scale = is_causal, scale
        return functional.scaled_dot_product_attention(
            query, key, value, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        found = attention_gradients(grad, query, key, value, mask, ctx.is_causal, ctx.scale)
        return (*found, None, None, None, None)


# an operation of its own: a compiler would lose the products' precision, and unroll the loops
@torch.library.custom_op("lrc::attention_gradients", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def attention_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value.

    Scores, probabilities and their gradients are float32; as factors of products they are rounded to bfloat16.

    Args:
        grad: Of attention's result, `[batch, heads, length, value width]`.
        query: As `attention` takes it.
        key: As `attention` takes it.
        value: As `attention` takes it.
        mask: `[1 or batch, 1 or heads, length, keys]`, bool or added to scores; None: there is none.
        is_causal: Positions see themselves and those before.
        scale: Of scores.
    """
    found = _empty_gradients(query, key, value)
    together = max(1, SCORES // (query.shape[1] * min(ROWS, query.shape[2]) * key.shape[2]))
    with exact_products(query.dtype):
        for first in range(0, query.shape[0], together):
            rows = slice(first, first + together)
            own = mask if mask is None or mask.shape[0] == 1 else mask[rows]
            written = [tensor[rows] for tensor in found]
            _fill(written, grad[rows], query[rows], key[rows], value[rows], own, is_causal=is_causal, scale=scale)
    return found


@attention_gradients.register_fake
def _fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(query, key, value)


def _empty_gradients(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make tensors of these shapes that lie position by position, as models take heads apart."""

    def empty(like: Tensor) -> Tensor:
        batch, heads, length, width = like.shape
        return like.new_empty(batch, length, heads, width).transpose(1, 2)

    return empty(query), empty(key), empty(value)


def _fill(
    found: list[Tensor],
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    is_causal: bool,
    scale: float,
) -> None:
    """Write the gradients of some rows of the batch into `found`."""
    batch, heads, length, _ = query.shape
    groups = batch * key.shape[1]
    keys, values = (_flat(tensor, groups) for tensor in (key, value))
    key_gradient, value_gradient = torch.zeros_like(keys), torch.zeros_like(values)
    bias, sees = _added(mask)
    for first, last, low, high in _blocks(mask, length, key.shape[2], is_causal=is_causal):
        queries, grads = (_flat(tensor[:, :, first:last], groups) for tensor in (query, grad))
        if sees is not None:
            grads.view(batch, heads, last - first, -1).mul_(sees[:, :, first:last])
        near_keys, near_values = keys[:, low:high], values[:, low:high]
        scores = _scaled_product(queries, near_keys.mT, scale)
        by_head = scores.view(batch, heads, last - first, high - low)
        if is_causal:
            by_head[..., first:last].add_(_triangle(last - first))
        elif bias is not None:
            by_head.add_(bias[:, :, first:last, low:high])
        shares = torch._softmax(scores, -1, False, out=scores)
        slopes = torch.bmm(grads, near_values.mT)
        value_gradient[:, low:high].baddbmm_(shares.mT, grads)
        torch.ops.aten._softmax_backward_data.out(slopes, shares, -1, shares.dtype, grad_input=slopes)
        query_gradient = _scaled_product(slopes, near_keys, scale)
        key_gradient[:, low:high].baddbmm_(slopes.mT, queries, alpha=scale)
        found[0][:, :, first:last].copy_(query_gradient.view(batch, heads, last - first, -1))
    found[1].copy_(key_gradient.view(key.shape))
    found[2].copy_(value_gradient.view(value.shape))


def _flat(tensor: Tensor, groups: int) -> Tensor:
    """Copy to float32 `[groups, positions, width]`; heads that share a key are positions of one group."""
    plain = torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor)
    return plain.view(groups, -1, tensor.shape[-1])


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left.new_zeros(1, 1, 1), left, right, beta=0, alpha=scale)


def _triangle(size: int) -> Tensor:
    return torch.full((size, size), MASKED).triu_(1)


def _added(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return what a mask adds to scores, float32, and which positions see any key, `[.., length, 1]`."""
    if mask is None:
        return None, None
    if mask.dtype != torch.bool:
        return mask.float().clamp(min=MASKED), None
    return torch.zeros(mask.shape).masked_fill_(~mask, MASKED), mask.any(-1, keepdim=True)


def _blocks(mask: Tensor | None, length: int, keys: int, *, is_causal: bool) -> list[tuple[int, int, int, int]]:
    """List first and last position of each block, and of the keys that any of them sees; last ones excluded."""
    found = []
    for first in range(0, length, ROWS):
        last = min(first + ROWS, length)
        low, high = 0, last if is_causal else keys
        if mask is not None and mask.dtype == torch.bool:
            seen = mask[:, :, first:last].flatten(0, 2).any(0).nonzero()
            if len(seen):
                low, high = int(seen[0]), int(seen[-1]) + 1
        found.append((first, last, low, high))
    return found
