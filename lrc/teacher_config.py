"""The recipe's section about the frozen teacher in training: in what format and where its matrices are held."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TeacherWeightsConfig:
    """How `lrc train` holds the matrices of the teacher's layers; the student is still defined by the teacher's own."""

    format: Literal["native", "int8", "nf4"] = "native"
    """`native`: the compute dtype. `int8`: a byte a value, one scale a row. `nf4`: 4 bits a value, blocks of 64."""
    offload: Literal["none", "cpu"] = "none"
    """`cpu`: beside a GPU they lie in main memory and come layer by layer, the next one on its way meanwhile."""

    @property
    def is_held(self) -> bool:
        """Whether anything is held in another way than as the loaded model's own parameters."""
        return self != NATIVE


NATIVE = TeacherWeightsConfig()
"""The teacher as it was loaded."""
