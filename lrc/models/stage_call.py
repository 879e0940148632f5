"""How the calibrated start runs a piece of a layer: from a stage's input up to its writer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from lrc.clone.sites import Stage, parent_of
from lrc.errors import ConfigError


@dataclass
class StageCall:
    """How a layer calls the module around a stage's readers and writers."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    slot: int | str
    """Which argument is the readers' input."""


class Reached(Exception):
    """Ends a module's forward where its work is done."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def stop_here(_: nn.Module, args: tuple[Any, ...]) -> None:
    """End a forward before this module, as its pre-hook.

    Raises:
        Reached: With the module's input.
    """
    raise Reached(args[0])


def call_module(twin: nn.Module, name: str, tensors: Mapping[str, Tensor], *arguments: Any, **keywords: Any) -> Any:
    """Call a submodule of the twin with the tensors of the part that lie below it."""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return functional_call(twin.get_submodule(name), own, arguments, keywords)


def writer_input(
    twin: nn.Module, stage: Stage, call: StageCall, tensors: Mapping[str, Tensor], normed: Tensor
) -> Tensor:
    """Run a stage of the twin from its readers' input up to its one writer; return the writer's input."""
    (writer,) = stage.writers
    arguments = tuple(normed if slot == call.slot else value for slot, value in enumerate(call.arguments))
    keywords = {key: normed if key == call.slot else value for key, value in call.keywords.items()}
    handle = twin.get_submodule(writer).register_forward_pre_hook(stop_here)
    try:
        call_module(twin, parent_of(stage), tensors, *arguments, **keywords)
    except Reached as reached:
        return reached.value
    finally:
        handle.remove()
    raise ConfigError(f"{writer} did not run where discovery saw it.")


def watch_call(teacher: nn.Module, stage: Stage, keep: Callable[[StageCall], object]) -> list[Any]:
    """Hook a teacher's layer for one forward, to see how a stage is called.

    Args:
        teacher: The layer.
        stage: One of its stages.
        keep: Called with the call, if the readers' input is among its arguments.

    Returns:
        The hooks' handles.
    """
    pending: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def find(_: nn.Module, args: tuple[Any, ...]) -> None:
        arguments, keywords = pending[0]
        slots: dict[int | str, Any] = dict(enumerate(arguments))
        slots.update(keywords)
        slot = next((key for key, value in slots.items() if value is args[0]), None)
        if slot is not None:
            keep(StageCall(arguments, keywords, slot))

    parent, reader = teacher.get_submodule(parent_of(stage)), teacher.get_submodule(stage.module_of(stage.readers[0]))
    return [
        parent.register_forward_pre_hook(lambda _, args, keywords: pending.append((args, keywords)), with_kwargs=True),
        reader.register_forward_pre_hook(find),
    ]
