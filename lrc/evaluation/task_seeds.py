"""Random numbers as lm-evaluation-harness's own command draws them, and the caller's own left as they were.

Some tasks are random when they are loaded: GPQA shuffles the choices of each row.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

PYTHON_SEED = 0
OTHER_SEED = 1234
"""As the library's own command seeds numpy, torch, and the choice of examples for few-shot prompts."""


class RandomState(NamedTuple):
    """Where the generators on the CPU stand."""

    python: Any
    numpy: Any
    torch: torch.Tensor


@contextmanager
def library_seeds(start: RandomState | None = None) -> Iterator[None]:
    """Seed all generators as the library's command does at its start; set them back to what they were at the end.

    Args:
        start: Where those on the CPU go on from, if the library has drawn numbers before.
    """
    before = random_state()
    # to read a device's state is to open it, which none but the one in use needs
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(PYTHON_SEED)
        np.random.seed(OTHER_SEED)
        torch.manual_seed(OTHER_SEED)
        if start is not None:
            _go_on_from(start)
        try:
            yield
        finally:
            _go_on_from(before)


def random_state() -> RandomState:
    """Return where the generators on the CPU stand."""
    return RandomState(random.getstate(), np.random.get_state(), torch.get_rng_state())


def _go_on_from(state: RandomState) -> None:
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
