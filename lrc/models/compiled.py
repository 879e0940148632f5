"""Compiled layers (`train.compile`): torch.compile around what a pair layer runs, eager from the first failure on.

A layer's run is one graph: the teacher's layer, the student's merges, its layer and its clone terms. Layers that are
alike share the compiled code. Measures and exports, which need no gradient, are never compiled.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._functorch import config as autograd_config

from lrc.models.pair_model import PairModel

ADVICE = "Set TORCHDYNAMO_VERBOSE"
"""How torch begins to say what its developers should look at."""
LONGEST_REASON = 200
"""Characters of a compiler's message that are shown."""


def compile_layers(pair: PairModel, tell: Callable[[str], None], *, backend: str = "inductor") -> None:
    """Compile each layer's run where it is first trained.

    Args:
        pair: Its layers are changed in place.
        tell: Called with one line if compilation fails; all layers run eagerly from then on.
        backend: As `torch.compile` takes it.
    """
    # DDP's own pass cuts graphs into its buckets, and can't cut one that holds a custom gradient
    torch._dynamo.config.optimize_ddp = False
    compiler = _Compiler(tell)
    for layer in pair.layers:
        layer.run = compiler.compiled(layer.run, backend)


class _Compiler:
    """What the layers of a pair know together: whether compilation has failed."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.has_failed = False
        self.both_passes = autograd_config.patch("force_non_lazy_backward_lowering", True)
        """Has a backward graph compiled with its forward graph: else it would fail where the backward pass comes to it.
        One for all calls, for each new one stays in the thread's context."""

    def compiled(self, eager: Callable[..., Any], backend: str) -> Callable[..., Any]:
        """Return a function that runs `eager` compiled, as long as that can be done."""
        fast = torch.compile(eager, fullgraph=True, backend=backend)
        is_fast = True
        """Whether the last forward pass ran compiled; what recomputes it must save the same tensors."""

        def run(*arguments: Any) -> Any:
            nonlocal is_fast
            if not torch.is_grad_enabled():
                return eager(*arguments)
            is_recomputation = torch._C._current_graph_task_id() != -1  # within a backward pass
            if not is_recomputation:
                is_fast = not self.has_failed
            if not is_fast:
                return eager(*arguments)
            try:
                with self.both_passes:
                    return fast(*arguments)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:  # nothing has run yet
                if is_recomputation:
                    raise
                is_fast, self.has_failed = False, True
                reason = " ".join(str(error).partition(ADVICE)[0].split())[:LONGEST_REASON]
                self.tell(f"train.compile: layers run as they are, for they can't be compiled: {reason}")
            return eager(*arguments)

        return run
