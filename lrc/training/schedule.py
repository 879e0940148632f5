"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from lrc.config import TrainConfig


def learning_rate(settings: TrainConfig, step: int) -> float:
    """Return the learning rate of optimiser step `step`, counted from 0.

    Warm-up rises linearly over `ceil(warmup_ratio * max_steps)` steps; then `linear` and `cosine` fall to 0 at the
    end of the run, `wsd` stays and falls linearly over the last `decay_ratio`, `constant` stays.
    """
    peak, total = settings.learning_rate, settings.max_steps
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "wsd":
        decay = max(1, math.ceil(settings.decay_ratio * total))
        return peak * min(1.0, (total - step) / decay)
    done = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak * (1 - done)
