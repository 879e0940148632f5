"""Merged weights formed once an optimiser step and shared by all its micro-batches.

Within a step the projections don't move, so every micro-batch would merge the same weights. Here they are merged once,
each micro-batch's gradient is added up in weight space, and the sum is pulled back to the projections once:
`dJ/dP = sum_micro (dM/dP).T dJ/dM = (dM/dP).T sum_micro dJ/dM`, since a merge is linear. Embedding rows, which differ
from batch to batch, and projections that clone terms use as they are get their gradients the direct way.
"""

import torch
from torch import Tensor

from lrc.config import Merge
from lrc.models.pair_model import PairModel
from lrc.models.part import ProjectedPart


def merges_once(setting: Merge, *, accumulates: bool, is_sharded: bool = False) -> bool:
    """Whether a step merges once: where a step has several micro-batches and the whole weights are there anyway.

    Args:
        setting: `train.merge`.
        accumulates: A step has several micro-batches.
        is_sharded: Each device has a share of the weights; merged ones and their gradients would be whole on each.
    """
    return setting == "step" or (setting == "auto" and accumulates and not is_sharded)


class StepWeights:
    """The merged weights of one optimiser step after the other."""

    def __init__(self, pair: PairModel, *, micro_batches: int = 1, merges_again: bool = False) -> None:
        """Form nothing yet.

        Args:
            pair: Its parts see what is formed.
            micro_batches: Those of a step.
            merges_again: Merge a second time to pull gradients back: what a sharded part's merge is made of is gone
                in between.
        """
        self.pair = pair
        self.micro_batches = micro_batches
        self.merges_again = merges_again
        self._formed: list[tuple[ProjectedPart, dict[str, Tensor], dict[str, Tensor]]] = []
        """Parts, their merged weights as the merge made them, and the leaves that the micro-batches see."""

    def form(self) -> None:
        """Merge, before a step's first micro-batch; later calls within the step do nothing.

        Gradients are added up in float32 (float64 for such weights) whatever the compute dtype.
        """
        if self._formed:
            return
        self.pair.head.merge_shared_by = self.micro_batches
        for part in self.pair.parts():
            if not part.is_merged_whole:
                continue
            with torch.set_grad_enabled(not self.merges_again):
                merged = part.merged_apart()
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in merged.items()}
            for leaf in leaves.values():
                leaf.grad_dtype = torch.promote_types(leaf.dtype, torch.float32)
            part.formed = leaves or None
            self._formed.append((part, {} if self.merges_again else merged, leaves))

    def pull_back(self) -> None:
        """Bring the step's gradients to the projections, and forget its weights."""
        self.pair.head.merge_shared_by = 1
        for part in self.pair.parts():
            part.formed = None
        while self._formed:  # one part after the other, so that each is freed as soon as it is done with
            part, merged, leaves = self._formed.pop()
            gradients = {name: leaf.grad.to(leaf.dtype) for name, leaf in leaves.items() if leaf.grad is not None}
            if gradients:
                merged = merged or part.merged_apart()
                torch.autograd.backward([merged[name] for name in gradients], list(gradients.values()))


def step_weights_for(
    pair: PairModel, setting: Merge, *, accumulation: int, is_sharded: bool = False
) -> StepWeights | None:
    """Return what merges a pair once a step; None if each micro-batch merges.

    Args:
        pair: Whose weights are merged.
        setting: `train.merge`.
        accumulation: Micro-batches of a step.
        is_sharded: As for `merges_once`.
    """
    once = merges_once(setting, accumulates=accumulation > 1, is_sharded=is_sharded)
    return StepWeights(pair, micro_batches=accumulation, merges_again=is_sharded) if once else None
