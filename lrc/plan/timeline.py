"""The timeline: what is alive in each stretch of a step at full depth, laid out from the trace of a few layers."""

from dataclasses import dataclass

from lrc.config import Checkpointing
from lrc.plan.sizes import Sizes
from lrc.plan.step_trace import LayerStretches, StepTrace, Stretch

GRADIENT_BYTES = 4
"""Trained tensors and their gradients are float32."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The highest point of one stretch of the step, in bytes beyond weights and optimiser state."""

    name: str
    kept: float
    """Alive as the stretch begins, without gradients: activations and merged weights that wait for backward."""
    merged: float
    """Of `kept`, merged weights of the layers."""
    gradients: float
    """Gradients of trained tensors made before the stretch."""
    working: float
    """What the stretch itself adds at its highest point."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.kept + self.gradients + self.working


@dataclass(frozen=True, kw_only=True)
class LayerBytes:
    """What each layer holds, by index."""

    gradients: list[int]
    merged: list[int]
    """Merged weights in the compute dtype; 0 where the layer forms them again in its backward pass."""


def layer_bytes(sizes: Sizes, *, itemsize: int, checkpointing: Checkpointing) -> LayerBytes:
    """Sum up each layer's gradients and merged weights, `itemsize` bytes a merged value.

    Of a tensor with a free update the layer holds the sum of both, which counts among its activations.
    """
    depth = sizes.architecture.num_layers
    gradients, merged = [0] * depth, [0] * depth
    prefix = f"{sizes.architecture.layers}."
    for name in sizes.plan.trained:
        tensor = name.partition(".")[2]
        if tensor.startswith(prefix):
            index = int(tensor.removeprefix(prefix).partition(".")[0])
            gradients[index] += GRADIENT_BYTES * sizes.trained_size(name)
    for name in sizes.plan.merges.keys() - sizes.plan.free.keys():
        if name.startswith(prefix) and checkpointing == "none":
            index = int(name.removeprefix(prefix).partition(".")[0])
            merged[index] += itemsize * sizes.merged_size(name)
    return LayerBytes(gradients=gradients, merged=merged)


def lay_out(sizes: Sizes, trace: StepTrace, kinds: list[int], per_layer: LayerBytes) -> list[Moment]:
    """Walk through a step at full depth: layers forward, head, head backward, layers backward.

    Args:
        sizes: Teacher and student.
        trace: The same step's stretches.
        kinds: Each layer's kind in the trace.
        per_layer: Gradients and merged weights of each layer.
    """
    moments = [Moment(name="embedding", kept=0, merged=0, gradients=0, working=trace.before.peak)]
    alive, merged, gradients = float(trace.before.end), 0.0, 0.0

    def pass_through(name: str, stretch: Stretch, *, merges: float = 0, made: float = 0) -> None:
        nonlocal alive, merged, gradients
        kept = alive - gradients
        moments.append(Moment(name=name, kept=kept, merged=merged, gradients=gradients, working=stretch.peak))
        alive, merged, gradients = alive + stretch.end, merged + merges, gradients + made

    for index, kind in enumerate(kinds):
        pass_through("layers, forward", trace.layers[kind].forward, merges=per_layer.merged[index])
    pass_through("head", trace.head)
    outside = GRADIENT_BYTES * sizes.trained_parameters - sum(per_layer.gradients)
    pass_through("head, backward", trace.head_backward, made=_head_gradients(sizes, outside))
    for index, kind in reversed(list(enumerate(kinds))):
        stretch, made = trace.layers[kind].backward, per_layer.gradients[index]
        pass_through("layers, backward", stretch, merges=-per_layer.merged[index], made=made)
    pass_through("embedding, backward", trace.after)
    return moments


def _head_gradients(sizes: Sizes, outside_layers: int) -> int:
    """Count those of the gradients outside the layers that the head's backward makes.

    All but those of the embedding's own projection and free weight, which come last.
    """
    plan, embedding, head = sizes.plan, sizes.architecture.embedding, sizes.architecture.head
    own = set()
    if embedding in plan.merges and not sizes.variant.tie_embedding_projection:
        own.add(plan.merges[embedding][0])
    if head in plan.free:
        own.add(plan.free[embedding])
    return outside_layers - GRADIENT_BYTES * sum(map(sizes.trained_size, own))


def at_batch(one: StepTrace, two: StepTrace, batch: float) -> StepTrace:
    """Extrapolate the traces of batches of 1 and 2 to another one: what a row adds is the same for each."""

    def stretch(first: Stretch, second: Stretch) -> Stretch:
        return Stretch(
            peak=round(first.peak + (batch - 1) * (second.peak - first.peak)),
            end=round(first.end + (batch - 1) * (second.end - first.end)),
        )

    layers = {
        kind: LayerStretches(
            forward=stretch(one.layers[kind].forward, two.layers[kind].forward),
            backward=stretch(one.layers[kind].backward, two.layers[kind].backward),
        )
        for kind in one.layers
    }
    return StepTrace(
        before=stretch(one.before, two.before),
        layers=layers,
        head=stretch(one.head, two.head),
        head_backward=stretch(one.head_backward, two.head_backward),
        after=stretch(one.after, two.after),
    )
