"""Which weights of a layer have a place for a correction."""

from lrc.clone.sites import Stage, Variant, corrected_weights, parent_of
from lrc.models.discovery import Architecture


def corrected_places(
    architecture: Architecture, prefix: str, stages: tuple[Stage, ...], variant: Variant
) -> dict[str, int]:
    """List the corrected weights of a layer's stages: name -> hidden axis, as `corrected_weights`.

    Readers have none if the module around them holds more than a stage's readers and writer, as a Mamba block its scan.
    """
    names = (*architecture.projected, *architecture.gains, *architecture.inherited)
    places: dict[str, int] = {}
    for stage in stages:
        inside = f"{prefix}{parent_of(stage)}.".replace("..", ".")  # the layer itself
        members = tuple(f"{prefix}{site}." for site in (*stage.readers, *stage.writers))
        is_plain = not any(name.startswith(inside) and not name.startswith(members) for name in names)
        for name, axis in corrected_weights(stage, variant).items():
            if is_plain or name == f"{stage.writers[0]}.weight":
                places[name] = axis
    return places
