"""Dense: student tensors that are trained as plain weights, in place of a merge or added to one (docs/methods.md).

Which tensors those are follows from names alone, so that training, checkpoints and export agree.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lrc.clone.sites import Stage, site_of
from lrc.errors import CheckpointError
from lrc.method_config import DenseForm


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Which of the student's tensors are free."""

    tensors: Literal["mlp", "all", "every"]
    """`mlp`: merged tensors of the layers' MLPs. `all`: all merged ones. `every`: inherited ones too, no projection."""
    form: DenseForm = "replace"
    """`replace`: the tensor is free. `complement`: it is merged, and a free one is added."""


FROM_SCRATCH = Dense(tensors="every")
"""A stock student: nothing of it comes from the teacher."""


def dense_names(
    dense: Dense, merges: Iterable[str], inherited: Iterable[str], stages: tuple[Stage, ...]
) -> tuple[str, ...]:
    """List the free tensors of one part of the student.

    Args:
        dense: What is free.
        merges: The part's merged tensors.
        inherited: The part's inherited tensors.
        stages: The layer's stages; none for parts outside the layers.
    """
    if dense.tensors == "every":
        return (*merges, *inherited)
    if dense.tensors == "all":
        return tuple(merges)
    sites = {site for stage in stages if stage.kind == "mlp" for site in (*stage.readers, *stage.writers)}
    return tuple(name for name in merges if site_of(name) in sites)


def dense_to_facts(dense: Dense | None) -> dict[str, str]:
    """Return what `lrc_config.json` says of a checkpoint's phase."""
    return {"tensors": "none"} if dense is None else asdict(dense)


def dense_of_facts(facts: dict[str, Any]) -> Dense | None:
    """Read the phase out of the content of `lrc_config.json`; checkpoints from before there were phases have none.

    Raises:
        CheckpointError: It names a phase that there is not.
    """
    phase = facts.get("phase", {"tensors": "none"})
    if phase == {"tensors": "none"}:
        return None
    try:
        dense = Dense(**phase)
        if dense.tensors not in ("mlp", "all", "every") or dense.form not in ("replace", "complement"):
            raise ValueError(f"no such phase: {phase}")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"lrc_config.json is damaged: {error!r}. Take another checkpoint.") from error
    return dense
