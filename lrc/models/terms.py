"""The terms that a method compares in each layer, by name: the columns of the clone sums."""

from lrc.clone.sites import Variant, layer_terms
from lrc.config import ObjectiveConfig
from lrc.errors import ConfigError
from lrc.method_config import Method
from lrc.models.discovery import Architecture
from lrc.models.tiny_bert import HIDDEN, TERMS


def measured_terms(
    architecture: Architecture, variant: Variant, objective: ObjectiveConfig, method: Method = "clone"
) -> tuple[str, ...]:
    """List the terms that are measured in each layer, the columns of the clone sums.

    Raises:
        ConfigError: `objective.without` names a term that the student lacks.
    """
    names = dict.fromkeys(term for stages in architecture.stages for term in layer_terms(stages, variant))
    if method == "tiny_bert":
        names = dict.fromkeys(TERMS)
    unknown = set(objective.without) - set(names) - {"all"}
    if unknown:
        raise ConfigError(
            f"objective.without names clone terms that this student lacks: {', '.join(sorted(unknown))}. "
            f"It has {', '.join(names)}."
        )
    left_out = set(names) if "all" in objective.without else set(objective.without)
    if objective.clone_weight == 0:  # a term through an alignment that nothing trains
        left_out.add(HIDDEN)
    return tuple(name for name in names if name not in left_out)
