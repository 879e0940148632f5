"""A student from scratch: the stock model of the clone's shape, with the values that its own class gives it."""

from typing import Any

import torch
from torch import nn

from lrc.errors import ConfigError
from lrc.models.dense import FROM_SCRATCH
from lrc.models.discovery import Architecture
from lrc.models.pair_model import PairModel
from lrc.models.stock import stock_model
from lrc.models.student import empty_student, student_config
from lrc.models.tiny_bert import ALIGNMENT, draw_alignment


def check_scratch(config: Any, architecture: Architecture, hidden_size: int, *, tied: bool) -> None:
    """Check that a student of this shape has trained values only.

    Raises:
        ConfigError: Its class keeps buffers in its checkpoints, which something outside of the loop must set.
    """
    student = empty_student(student_config(config, hidden_size, tied=tied))
    stored = {name for name, _ in student.named_buffers()} & set(architecture.inherited)
    if stored:
        raise ConfigError(
            f"A student of {architecture.model_type} can't be trained from scratch: {sorted(stored)[0]} is no trained "
            "value, and the loop does not set it. Take method=clone."
        )


@torch.no_grad()
def fill_scratch(pair: PairModel, *, seed: int) -> None:
    """Give a pair in the phase `FROM_SCRATCH` the initial values of its student's own class, float32.

    The global random state is left as it was.
    """
    assert pair.dense == FROM_SCRATCH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = stock_model(pair.student_config, dtype=torch.float32)
    stock = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in pair.trained().items():
        _, _, tensor = name.partition(".")
        if name == ALIGNMENT:
            generator = torch.Generator().manual_seed(seed)
            parameter.copy_(draw_alignment(parameter.shape[0], parameter.shape[1], generator))
        else:
            parameter.copy_(stock[tensor])
