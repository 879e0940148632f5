"""The short table of what neither tensor shapes nor a forward of a tiny model can tell, one source a line.

Everything else about a family is discovered: `models/discovery.py` (what is projected), `models/trace.py` (who reads
what), `models/scales.py` (multipliers, gains stored as 1 + w). The oracles make it safe.
"""

from typing import Any

SOFTCAP_FIELDS = (
    "final_logit_softcapping",  # transformers Gemma2ForCausalLM.forward: tanh(logits / cap) * cap
)
"""Config fields that name the cap of the final logits."""


def logit_softcap(config: Any) -> float | None:
    """Return the cap of the final logits, or None."""
    caps = [getattr(config, name, None) for name in SOFTCAP_FIELDS]
    return next((float(cap) for cap in caps if cap is not None), None)
