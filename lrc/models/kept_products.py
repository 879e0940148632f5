"""The products that a layer keeps for its backward pass under `activation_checkpointing: selective`.

A layer's second run gets from the first one the results of its attention and of those matrix products that are no
wider than what they are made of, which cost most to compute for each byte. It computes the rest again: wide products
(an MLP's gate and up), norms, rotary embeddings, activations. What stands around the student's own module (merges,
clone terms) is not looked at.

Results are kept where they lie; one that the model is about to write into (a bias added in place to the product of
stacked experts) is copied first.

torch's own `create_selective_checkpoint_contexts` wants the same operations in both runs of the whole region; a held
teacher's merges (`models/held_teacher.py`) fetch ahead, and what they find there differs from run to run.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# no bmm: of attention that is computed in pieces it makes the scores, heads x length values a position
PRODUCTS = {
    torch.ops.aten.mm.default: 1,
    torch.ops.aten.addmm.default: 2,
    torch.ops.aten._grouped_mm.default: 1,
}
"""Products of two matrices, with the place of the second one among their arguments."""
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
"""Attention in one operation."""


class KeptProducts(TorchDispatchMode):
    """Keeps the results of products in the block's first run, and hands them out in its second."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._results: deque[Any] = deque()
        self._is_second = False
        self._is_paused = False

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch's own
        self._is_second = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Compute what lies in this block anew in the second run."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._is_second and func._schema.is_mutable:
            self._copy_first(written_storages(func, args, kwargs))
        if self._is_paused or not is_kept(func, args):
            return func(*args, **kwargs)
        if self._is_second:
            return self._results.popleft()
        result = func(*args, **kwargs)
        # detached: the result itself gets its place in the graph, which holds this object
        self._results.append(tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, result))
        return result

    def _copy_first(self, storages: set[int]) -> None:
        """Give the kept results that lie in these storages memory of their own."""

        def own(leaf: Any) -> Any:
            return leaf.clone() if isinstance(leaf, Tensor) and _storage(leaf) in storages else leaf

        for place, result in enumerate(self._results):
            self._results[place] = tree_map(own, result)


def written_storages(operation: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> set[int]:
    """Name the storages of the tensors that a call of an operation writes into."""
    found = set()
    for place, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = arguments[place] if place < len(arguments) else keywords.get(argument.name)
            found |= {_storage(leaf) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
    return found


def _storage(tensor: Tensor) -> int:
    handle: int = tensor.untyped_storage()._cdata  # not its address, which tensors without data lack
    return handle


def is_kept(operation: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether an operation's result is worth its bytes: attention, and products `[n, k] x [k, m]` with `m <= k`."""
    if operation in ATTENTION:
        return True
    if operation not in PRODUCTS:
        return False
    inner, width = arguments[PRODUCTS[operation]].shape[-2:]
    return bool(width <= inner)
