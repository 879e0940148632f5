"""The short table of what neither tensor shapes nor a forward of a tiny model can tell, one source a line.

Everything else about a family is discovered: `models/discovery.py` (what is projected), `models/trace.py` (who reads
what), `models/scales.py` (multipliers, gains stored as 1 + w). The oracles make it safe.
"""

from typing import Any


def logit_softcap(config: Any) -> float | None:
    """Return the cap of the final logits, or None."""
    # transformers Gemma2ForCausalLM.forward: tanh(logits / cap) * cap
    cap = getattr(config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)
