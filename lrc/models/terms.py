"""The terms that a method compares in each layer, by name: the columns of the clone sums."""

from collections.abc import Collection

import torch
from torch import Tensor

from lrc.clone.sites import Variant, layer_terms
from lrc.config import ObjectiveConfig
from lrc.errors import ConfigError
from lrc.method_config import Method
from lrc.models.discovery import Architecture
from lrc.models.tiny_bert import HIDDEN, MAP, TERMS, attention_module


def measured_terms(
    architecture: Architecture, variant: Variant, objective: ObjectiveConfig, method: Method = "clone"
) -> tuple[str, ...]:
    """List the terms that are measured in each layer, the columns of the clone sums.

    Raises:
        ConfigError: `objective.without` or `objective.clone_term_weights` names a term that the student lacks, or the
            objective is 0 whatever the student does.
    """
    names = dict.fromkeys(term for stages in architecture.stages for term in layer_terms(stages, variant))
    if method == "tiny_bert":
        names = dict.fromkeys(TERMS)
    without = [term for term in objective.without if term != "all"]
    weighted = [term for term, weight in objective.clone_term_weights.items() if weight != 1]
    for key, named in (("without", without), ("clone_term_weights", weighted)):
        unknown = set(named) - set(names)
        if unknown:
            raise ConfigError(
                f"objective.{key} names clone terms that this student lacks: {', '.join(sorted(unknown))}. "
                f"It has {', '.join(names)}."
            )
    left_out = set(names) if "all" in objective.without else set(objective.without)
    if objective.clone_weight == 0:  # a term through an alignment that nothing trains
        left_out.add(HIDDEN)
    found = tuple(name for name in names if name not in left_out)
    is_cloned = objective.clone_weight > 0 and _is_any_counted(architecture, variant, objective, found)
    if not (objective.lm_weight or objective.kl_weight or is_cloned):
        raise ConfigError(
            "The objective leaves nothing to train on: objective.lm_weight and kl_weight are 0, and no clone term "
            "is left whose weight is above 0. Set one of the two above 0, or take a term out of objective.without "
            f"and give it a weight. This student has {', '.join(names)}."
        )
    return found


def _is_any_counted(
    architecture: Architecture, variant: Variant, objective: ObjectiveConfig, term_names: Collection[str]
) -> bool:
    """Whether a layer has a term whose weight there is above 0."""
    points = measured_points(architecture, variant, term_names)
    weights = point_weights(objective, len(points), term_names)
    if weights is None:
        return any(points)
    return any(
        bool(weights[layer, column] > 0)
        for layer, own in enumerate(points)
        for column, name in enumerate(term_names)
        if name in own
    )


def measured_points(
    architecture: Architecture, variant: Variant, term_names: Collection[str]
) -> tuple[frozenset[str], ...]:
    """List which of the measured terms each layer has.

    Layers of two kinds (dense and experts, attention and Mamba) have not all of them: what a layer lacks is 0 in the
    clone sums, and no part of their mean.
    """
    found = []
    for index, stages in enumerate(architecture.stages):
        own = {*layer_terms(stages, variant), HIDDEN}
        if attention_module(architecture, index) is not None:
            own.add(MAP)
        found.append(frozenset(own.intersection(term_names)))
    return tuple(found)


def point_weights(
    objective: ObjectiveConfig, num_layers: int, term_names: Collection[str], device: torch.device | None = None
) -> Tensor | None:
    """Return what each clone point counts: its term's weight times its layer's. None if all count 1.

    Args:
        objective: `clone_term_weights` and `clone_depth_slope`.
        num_layers: A single layer counts 1.
        term_names: The columns of the clone sums.
        device: Of the result; None: the CPU.

    Returns:
        `[layers, terms]` float32.
    """
    if objective.clone_depth_slope == 0 and all(weight == 1 for weight in objective.clone_term_weights.values()):
        return None
    terms = torch.tensor([objective.clone_term_weights.get(name, 1.0) for name in term_names])
    places = torch.linspace(-1, 1, num_layers) if num_layers > 1 else torch.zeros(1)
    return torch.outer(1 + objective.clone_depth_slope * places, terms).to(device or "cpu")
