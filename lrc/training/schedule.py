"""Functions of the step alone, so that a resumed run needs no scheduler state: the learning rate, and what is due."""

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


def is_measured(settings: TrainConfig, step: int) -> bool:
    """Whether held-out text is measured after `step` steps: as the recipe says, or at each quarter of the run."""
    if step == settings.max_steps:
        return True
    if settings.evaluate_steps is not None:
        return step % settings.evaluate_steps == 0
    return step in {round(settings.max_steps * quarter / 4) for quarter in (1, 2, 3)}
