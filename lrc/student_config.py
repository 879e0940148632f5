"""The recipe's section `student`: its width, who shares a projection, what is corrected."""

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING

ProjectionSharing = Literal["all", "io"]
Correction = Literal["none", "outputs", "mlp"]


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Shape of the student and of its projections."""

    hidden_size: int = MISSING
    """Width `d_S` of the student's residual stream; the teacher's is `d_T` and must be larger."""
    attention_projections: ProjectionSharing = "all"
    """`all`: one projection for each of q, k, v. `io`: q, k, v share one (docs/method.md, section 3)."""
    ffn_projections: ProjectionSharing = "all"
    """`all`: one projection for each of gate, up. `io`: they share one."""
    tie_embedding_projection: bool = False
    """Embedding and head share one projection; the student's head is tied if the teacher's is too."""
    correction: Correction = "none"
    """What has a fixed correction beside the merge, fitted by a `calibrated` start (docs/method.md, 8.5): the output
    weights of MLPs (`outputs`) or all weights of MLPs (`mlp`); false and true are read as `none` and `outputs`."""
