"""How much the teacher's logits mind an error of its residual stream, by direction (docs/method.md section 8.2)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrc.clone.head import HeadWeights, chunk_positions, float32_logits, head_losses, softcapped
from lrc.clone.initialise import ProductSum
from lrc.models.head_reader import head_inputs
from lrc.models.pair_head import head_matrix
from lrc.models.pair_model import PairModel
from lrc.models.short_attention import ShortAttention
from lrc.models.stream import normalised_stream, removed_after, run_base, stream_readers


@dataclass(frozen=True, kw_only=True)
class StreamSensitivity:
    """Means over all tokens and all points where something reads the stream, `x` the normalised stream there."""

    second_moment: Tensor
    """`E[x x.T]`, `[d_T, d_T]` float64."""
    sensitivity: Tensor
    """`E[g g.T]`, a row's first token left out, `[d_T, d_T]` float64: the Fisher information.

    `g` is the gradient of a row's `-log p(y)` with respect to `x`, each `y` drawn from the teacher's own `p`. A small
    error `e` of what is read at one point costs about `e.T E[g g.T] e / 2` nats, over all tokens."""


def stream_sensitivity(
    pair: PairModel,
    teacher: nn.Module,
    batches: list[Tensor],
    progress: Callable[[str, int, int], None],
    *,
    is_centred: bool = False,
    seed: int = 0,
) -> StreamSensitivity:
    """Run the teacher forward and backward over the batches and sum both moments of the stream.

    For the backward pass each point's stream is kept, the rest of a layer runs again, and the head holds a chunk of
    logits at a time.

    Args:
        pair: Tells where the stream is read.
        teacher: The stock teacher, frozen.
        batches: Ids, `[batch, seq]` each.
        progress: Called with ("basis", batches done, batches), first with none done.
        is_centred: Take each state's mean over the channels out before it is normalised, as the norms do.
        seed: Of the labels that are drawn.

    Raises:
        NumericsError: The last states are not finite.
    """
    width, device = pair.architecture.hidden_size, next(teacher.parameters()).device
    second, sensitive = ProductSum(width, width, device), ProductSum(width, width, device)
    generator = torch.Generator(device).manual_seed(seed)
    rows = answered = 0

    def watched(stream: Tensor) -> Tensor:
        """Return the stream as a tensor of its own, so that its gradient is that of this reader alone."""
        read = stream.view_as(stream)
        read.register_hook(partial(add, stream.detach()))
        return read

    def add(stream: Tensor, gradient: Tensor) -> None:
        nonlocal rows, answered
        normed, size = normalised_stream(stream, is_centred=is_centred)
        second.add(normed, normed)
        rows += normed.shape[0]
        # most heads rest on the first token, which would have most of all squared gradients
        answers = (gradient.float() * size.view(*gradient.shape[:-1], 1))[:, 1:].flatten(0, -2)
        sensitive.add(answers, answers)
        answered += answers.shape[0]

    def backward(states: Tensor) -> None:
        _surprise(pair, states, generator).backward()

    layers = list(teacher.get_submodule(pair.architecture.layers).children())
    embedding = teacher.get_submodule(pair.architecture.embedding.rpartition(".")[0])
    with ExitStack() as stack:
        stack.enter_context(removed_after([embedding.register_forward_hook(_need_gradient)]))
        stack.enter_context(stream_readers(pair, teacher, watched))
        stack.enter_context(_recomputed(layers))
        stack.enter_context(torch.enable_grad())
        run_base(pair, teacher, batches, "basis", progress, use=backward)
    return StreamSensitivity(second_moment=second.total() / rows, sensitivity=sensitive.total() / max(1, answered))


def _need_gradient(module: nn.Module, args: tuple[Tensor, ...], entering: Tensor) -> Tensor:
    """Let the backward pass begin at an embedding's output, whose weights are frozen."""
    return entering.detach().requires_grad_()


def _surprise(pair: PairModel, states: Tensor, generator: torch.Generator) -> Tensor:
    """Sum `-log p(y)` over states after the last norm, `[batch, seq, d_T]`, each `y` drawn from its own `p`."""
    inputs = head_inputs(states.flatten(0, -2), scale=pair.architecture.scales.logits, has_bias=pair.head.has_bias)
    head = head_matrix(dict(pair.head.teacher.named_parameters()))
    labels = _drawn_labels(inputs.detach(), head, pair.softcap, generator)
    weights = HeadWeights(lm=1.0, kl=0.0, softcap=pair.softcap)
    return head_losses(inputs, None, head, head, labels, weights=weights)[0]


@torch.no_grad()
def _drawn_labels(inputs: Tensor, head: Tensor, softcap: float | None, generator: torch.Generator) -> Tensor:
    """Draw a next token at each position from the teacher's own distribution, `[positions]`."""
    drawn = []
    for some in inputs.split(chunk_positions(len(head), positions=len(inputs))):
        logits = softcapped(float32_logits(some, head), softcap)
        drawn.append(torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0])
    return torch.cat(drawn)


@contextmanager
def _recomputed(layers: list[nn.Module]) -> Iterator[None]:
    """Let each layer keep its input alone for the backward pass, and run again there."""
    own = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        run = partial(_run_layer, layer.forward)
        layer.forward = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _run_layer(forward: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Run a layer, the second time too, with the gradient of attention that is fast on a CPU."""
    with ShortAttention():
        return forward(*args, **keywords)
