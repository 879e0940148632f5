"""Which weights of a layer have a place for a correction."""

from lrc.clone.sites import Stage, Variant, corrected_weights, parent_of
from lrc.models.discovery import Architecture


def corrected_places(
    architecture: Architecture, prefix: str, stages: tuple[Stage, ...], variant: Variant
) -> dict[str, int]:
    """List the corrected weights of a layer's stages: name -> hidden axis, as `corrected_weights`.

    Readers have none if the module around them holds more than a stage's readers and writer, as a Mamba block its scan.
    """
    places: dict[str, int] = {}
    for stage in stages:
        found = corrected_weights(stage, variant)
        if len(found) > 1 and not _is_plain(architecture, prefix, stage):
            found = {name: axis for name, axis in found.items() if axis == 0}
        places |= found
    return places


def _is_plain(architecture: Architecture, prefix: str, stage: Stage) -> bool:
    """Whether the module around a stage holds nothing but its readers and writers."""
    parent = parent_of(stage)
    inside = f"{prefix}{parent}." if parent else prefix
    members = tuple(f"{prefix}{site}." for site in (*stage.readers, *stage.writers))
    names = (*architecture.projected, *architecture.gains, *architecture.inherited)
    return not any(name.startswith(inside) and not name.startswith(members) for name in names)
