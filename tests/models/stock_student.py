"""The stock student that a pair stands for, merged by shapes and names alone; what modules got and gave."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrc.models.pair_model import PairModel

Calls = dict[str, list[tuple[Tensor, Tensor]]]
"""Module name -> (first input, output) of each of its calls."""


@torch.no_grad()
def stock_student(pair: PairModel, teacher: nn.Module) -> Any:
    """Merge a pair's student in the teacher's dtype; what has the teacher's shape is the teacher's."""
    dtype = next(teacher.parameters()).dtype
    student = type(teacher)(pair.student_config).to(dtype).eval().requires_grad_(False)
    theirs = dict(teacher.named_parameters(remove_duplicate=False))
    stored = {name: parameter.to(dtype) for name, parameter in pair.stored().items()}
    trained = {name: parameter.to(dtype) for name, parameter in pair.trained().items()}
    for name, target in student.named_parameters():
        source = theirs[name]
        module = name.rpartition(".")[0]
        if target.shape == source.shape:
            target.copy_(source)
        elif target.dim() == 1:
            target.copy_(trained[f"gains.{name}"])
        else:
            shared = f"projections.{module.rpartition('.')[0]}.input"
            names = (f"projections.{module}", shared, "projections.model.embed_tokens")
            projection = next(trained[name] for name in names if name in trained)
            reads = target.shape[0] == source.shape[0]
            target.copy_(source @ projection if reads else projection.T @ source)
        if f"corrections.{name}" in stored:
            target.add_(stored[f"corrections.{name}"])
    return student


@contextmanager
def recorded(model: nn.Module, names: list[str]) -> Iterator[Calls]:
    """Keep the first input and the output of every call of the named modules while the block runs."""
    calls: Calls = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda _, args, output: calls[name].append((args[0], output))

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def num_hooks(model: nn.Module) -> int:
    """Count the hooks on a model's modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
