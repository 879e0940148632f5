"""Merged weights formed once an optimiser step and shared by all its micro-batches.

Within a step the projections don't move, so every micro-batch would merge the same weights. Here they are merged once,
each micro-batch's gradient is added up in weight space, and the sum is pulled back to the projections once:
`dJ/dP = sum_micro (dM/dP).T dJ/dM = (dM/dP).T sum_micro dJ/dM`, since a merge is linear. Embedding rows, which differ
from batch to batch, and projections that clone terms use as they are get their gradients the direct way.
"""

import torch
from torch import Tensor

from lrc.models.pair_model import PairModel


class StepWeights:
    """The merged weights of one optimiser step after the other."""

    def __init__(self, pair: PairModel) -> None:
        self.pair = pair
        self._merged: list[tuple[Tensor, Tensor]] = []
        """Merged weights, each as the merge made it and as the leaf that the micro-batches see."""

    def form(self) -> None:
        """Merge, before a step's first micro-batch; later calls within the step do nothing.

        Gradients are added up in float32 (float64 for such weights) whatever the compute dtype.
        """
        if self._merged:
            return
        for part in self.pair.parts():
            merged = part.merged_tensors() if part.is_merged_whole else {}
            leaves = {}
            for name, tensor in merged.items():
                leaf = tensor.detach().requires_grad_()
                leaf.grad_dtype = torch.promote_types(tensor.dtype, torch.float32)
                leaves[name] = leaf
                self._merged.append((tensor, leaf))
            part.formed = leaves or None

    def pull_back(self) -> None:
        """Bring the step's gradients to the projections, and forget its weights."""
        for part in self.pair.parts():
            part.formed = None
        while self._merged:  # one after the other, so that each is freed as soon as it is done with
            tensor, leaf = self._merged.pop()
            if leaf.grad is not None:
                tensor.backward(leaf.grad.to(tensor.dtype))
