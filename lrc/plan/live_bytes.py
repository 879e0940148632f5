"""Live bytes: a dispatch mode that knows at each moment how many bytes of tensors made inside it are still alive."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follow every storage that an operation returns until it dies; tensors from outside are not counted.

    Works on fake tensors, which have sizes and life spans but no memory, as on real ones.
    """

    def __init__(self, outside: list[torch.Tensor]) -> None:
        """Start at zero bytes.

        Args:
            outside: Tensors that exist already; operations that return views of them add nothing.
        """
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.now = 0
        self.peak = 0
        """Highest `now` since `mark` was last called."""
        self._seen: dict[int, weakref.ref[Any]] = {}
        for tensor in outside:
            self._follow(tensor, counts=False)

    def mark(self) -> tuple[int, int]:
        """Return (bytes now, peak since the last mark), and begin a new stretch."""
        now, peak = self.now, self.peak
        self.peak = now
        return now, peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf, counts=True)
        return result

    def _follow(self, tensor: torch.Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        size = storage.nbytes() if counts else 0

        def forget(_: Any) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
