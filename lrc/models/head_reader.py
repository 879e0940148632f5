"""A stock causal LM seen from its head: the states that the head reads, and the matrix that makes logits of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lrc.models.discovery import base_module, discover
from lrc.models.facts import logit_softcap
from lrc.models.pair_head import head_matrix, with_one


def head_inputs(hidden: Tensor, *, scale: float, has_bias: bool) -> Tensor:
    """Turn states after the last norm, `[..., hidden]`, into what makes logits with `head_matrix` (before a soft-cap).

    Args:
        hidden: The states.
        scale: The family's constant on logits (Granite, Cohere).
        has_bias: Whether the head has a bias (Phi), the matrix's last column; the states get a one there.
    """
    hidden = with_one(hidden) if has_bias else hidden
    return hidden * scale if scale != 1 else hidden


class HeadReader:
    """Gives `inputs` and `matrix` so that `inputs @ matrix.T`, soft-capped with `softcap`, are the model's logits."""

    def __init__(self, model: Any) -> None:
        """Measure the family's constant on logits.

        Raises:
            ConfigError: The architecture is one that discovery refuses.
        """
        self.model = model
        self.scale = discover(model.config).scales.logits
        self.softcap = logit_softcap(model.config)

    @property
    def base(self) -> nn.Module:
        """The module that runs embedding, layers and last norm."""
        module: nn.Module = self.model.get_submodule(base_module(self.model))
        return module

    def matrix(self) -> Tensor:
        """Return the head `[vocabulary, hidden]`; a bias is one more column."""
        return head_matrix(dict(self.model.get_output_embeddings().named_parameters()))

    def inputs(self, hidden: Tensor) -> Tensor:
        """Turn states after the last norm, `[..., hidden]`, into what the matrix multiplies."""
        return head_inputs(hidden, scale=self.scale, has_bias=self.model.get_output_embeddings().bias is not None)

    @contextmanager
    def captured(self) -> Iterator[list[Tensor]]:
        """Collect the states after the last norm of every forward within the block."""
        found: list[Tensor] = []
        hook = self.base.register_forward_hook(lambda module, args, output: found.append(output.last_hidden_state))
        try:
            yield found
        finally:
            hook.remove()
