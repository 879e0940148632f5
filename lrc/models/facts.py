"""The short table of what tensor shapes can't tell about a family, one source a line.

Everything else about a family is discovered (`models/discovery.py`). A family that is not in the table gets the
defaults, and the identity oracle (`lrc` refuses a student that fails it) is what makes that safe.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """What shapes can't tell about one `model_type`."""

    unit_gain: float = 1.0
    """Stored value of a norm gain that multiplies by one."""
    scales_embedding: bool = False
    """The embedding's rows are multiplied by sqrt(hidden size) on their way into the stream."""


FACTS: dict[str, FamilyFacts] = {
    # transformers Gemma3RMSNorm: output * (1 + weight); Gemma3TextScaledWordEmbedding: embed_scale = hidden_size**0.5
    "gemma3_text": FamilyFacts(unit_gain=0.0, scales_embedding=True),
}


def facts_for(config: Any) -> FamilyFacts:
    """Look a transformers config's family up."""
    return FACTS.get(config.model_type, FamilyFacts())


def embedding_scale(config: Any) -> float:
    """Return the factor between an embedding row and what enters the residual stream."""
    return float(config.hidden_size) ** 0.5 if facts_for(config).scales_embedding else 1.0


def logit_softcap(config: Any) -> float | None:
    """Return the cap of the final logits (`final_logit_softcapping` of Gemma configs), or None."""
    cap = getattr(config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)
