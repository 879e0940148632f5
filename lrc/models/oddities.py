"""What is odd about an architecture, in words: everything that a Llama would not have."""

from typing import Any

from lrc.models.discovery import Architecture
from lrc.models.facts import logit_softcap


def oddities(architecture: Architecture, config: Any) -> list[str]:
    """List what differs from a plain decoder, one line each; empty for a Llama."""
    return [*_odd_constants(architecture, config), *_odd_layers(architecture), *_odd_tensors(architecture)]


def _odd_constants(architecture: Architecture, config: Any) -> list[str]:
    scales, law = architecture.scales, architecture.scale_law
    found = []
    if scales.embedding != 1:
        grows = ", which grows with the root of the hidden size" if law.embedding_grows else ""
        found.append(f"embedding rows are multiplied by {scales.embedding:.6g}{grows}")
    if scales.logits != 1:
        found.append(f"logits are multiplied by {scales.logits:.6g}")
    if (cap := logit_softcap(config)) is not None:
        found.append(f"logits are capped at {cap:g}")
    if scales.unit_gain != 1:
        found.append("norm gains are stored as 1 + w")
    return found


def _odd_layers(architecture: Architecture) -> list[str]:
    stages = [stage for layer in architecture.stages for stage in layer]
    kinds = len(set(architecture.stages))
    checks = {
        f"{kinds} kinds of layers": kinds > 1,
        "experts are stacked in one tensor (router logits and the block's output are clone points; balance of the "
        "experts' load is the teacher's to keep)": any(stage.bare for stage in stages),
        "two stages read the stream side by side, or a block is not simply added": any(
            stage.residual is None for stage in stages
        ),
        "what a block writes is multiplied before it joins the stream": any(
            stage.residual not in (None, 1.0) for stage in stages
        ),
        "readers get the stream without a norm": any(stage.norm is None for stage in stages),
        "a norm stands after the writers": any(stage.post_norm is not None for stage in stages),
        "several writers answer one input": any(len(stage.writers) > 1 for stage in stages),
    }
    return [what for what, holds in checks.items() if holds]


def _odd_tensors(architecture: Architecture) -> list[str]:
    norms = {
        f"{architecture.layers}.{index}.{stage.norm}"
        for index, layer in enumerate(architecture.stages)
        for stage in layer
        if stage.norm is not None
    }
    with_gain = {name.rpartition(".")[0] for name in architecture.gains}
    found = []
    if any(name.endswith(".bias") for name in architecture.gains):
        found.append("norms have a bias, which is trained like a gain")
    if norms - with_gain:
        found.append("norms have no gain")
    if any(entry.role == "writer" and entry.name.endswith("bias") for entry in architecture.projected.values()):
        found.append("writers have biases, which share the writer's projection")
    if f"{architecture.head.removesuffix('weight')}bias" in architecture.inherited:
        found.append("the head has a bias, which the student inherits")
    return found
