"""The parity check's logits of a large student, with the weights of one layer in memory at a time.

The pair and the stock student are built of stand-ins without memory, all of them NaN: a weight that is forgotten shows
in the logits. Each part gets its weights from the files when it is called and gives them back after. Of the embedding
the rows of the check's ids are read, and the head runs a few thousand rows after the other.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lrc.clone.head import softcapped
from lrc.config import ObjectiveConfig
from lrc.export.convert import Source, exported_dtype, merged_rows, merged_tensor, row_chunks, stored_name
from lrc.export.original_student import take_student_eps
from lrc.export.teacher_tensors import TeacherTensors
from lrc.models.checkpoint import variant_of
from lrc.models.folder import ModelTensors
from lrc.models.pair_model import PairModel
from lrc.models.part import ProjectedPart, part_plan
from lrc.models.stock import stock_model
from lrc.models.teacher import load_config

Rows = tuple[int, int] | Tensor
"""Rows of a tensor: from the first up to the last, or single ones by their numbers, ascending."""
Fill = Callable[[Mapping[str, Tensor], Rows | None], Iterator[None]]
"""Gives tensors their values, or of a table some rows, in one form after the other."""


def is_streamed(source: Source, most_bytes: int) -> bool:
    """Whether the teacher is larger than `most_bytes` in float32 and its files name tensors as its model does."""
    return not source.renamed and float32_bytes(source.teacher_folder) > most_bytes


def float32_bytes(folder: Path) -> int:
    """Count the bytes of a folder's tensors in float32; a byte of packed weights (mxfp4) is taken to hold two."""
    tensors = ModelTensors(folder)
    found = [tensors.shape_and_dtype(name) for name in tensors.names()]
    return sum(4 * prod(shape) * (2 if dtype == "U8" else 1) for shape, dtype in found)


@torch.no_grad()
def streamed_factored_logits(source: Source, ids: Tensor, done: Callable[[], None] = lambda: None) -> Tensor:
    """Return the factored student's logits, `[batch, seq, vocabulary]` float32; layers and the head call `done`."""
    pair, teacher = _hollow_pair(source), source.open_teacher()
    names = {id(parameter): name for name, parameter in pair.stored().items()}

    def fill(part: ProjectedPart, rows: Rows | None) -> None:
        for name, tensor in part.teacher.state_dict(keep_vars=True).items():
            if (full := part.prefix + name) in source.plan.names or full == source.architecture.head:
                tensor.data = _read(teacher, stored_name(source, teacher, full), rows, len(tensor)).to(tensor.dtype)
        for parameter in part.stored().values():
            name = names[id(parameter)]
            chosen = slice(*rows) if isinstance(rows, tuple) and name.startswith("dense.") else slice(None)
            parameter.data = source.trained[name][chosen].float()

    def give_back(part: ProjectedPart) -> None:
        for tensor in (*part.teacher.parameters(), *part.stored().values()):
            tensor.data = stand_in(tensor)

    embedding = source.architecture.embedding.rpartition(".")[0]
    for part in pair.parts():
        if part is not pair.head:
            rows = ids.unique() if part.prefix == f"{embedding}." else None
            part.register_forward_pre_hook(lambda part, _, rows=rows: fill(part, rows))
            part.register_forward_hook(lambda part, *_: give_back(part))
    for layer in pair.layers:
        layer.register_forward_hook(lambda *_: done())
    hidden = pair.hidden_states(ids, None)[0]
    chunks = []
    for rows in row_chunks(source.config.vocab_size, source.architecture.hidden_size):
        fill(pair.head, rows)
        chunks.append(softcapped(hidden @ pair.heads()[0].T, pair.softcap))
    done()
    return torch.cat(chunks, -1)


def _hollow_pair(source: Source) -> PairModel:
    """Build the checkpoint's pair of stand-ins."""
    config = load_config(str(source.teacher_folder), trust_remote_code=source.trust_remote_code)
    teacher: Any = hollow_model(config)
    take_student_eps(source.config, teacher.config)
    size, architecture = source.student.hidden_size, source.architecture
    with accelerate.init_empty_weights(include_buffers=False):
        pair = PairModel(
            teacher,
            hidden_size=size,
            variant=variant_of(source.student),
            objective=ObjectiveConfig(without=("all",)),
            architecture=architecture,
        ).eval()
    for part in pair.parts():  # `PairModel.enter` would merge
        plan, twins = part_plan(architecture, pair.variant, size, part.prefix, source.dense), part.twin
        part.enter(plan, {name: stand_in(twins.get_parameter(name)) for name in plan.dense}, ())
    pair.dense = source.dense
    hollow_out(pair)
    return pair


@torch.no_grad()
def streamed_student_logits(
    source: Source, ids: Tensor, draft: Path, exported: torch.dtype, done: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the stock student's logits on merged weights, on these rounded to the exported dtype, and on the folder's.

    The first two run beside each other, so that each tensor is merged once. The third are of the model that the
    folder's own config says.

    Args:
        source: The checkpoint and its teacher.
        ids: `[batch, seq]`.
        draft: The exported folder.
        exported: Its dtype.
        done: Called when a layer has run on merged weights, and when the last head has.

    Returns:
        `[batch, seq, vocabulary]` float32 each.
    """
    teacher, stored = source.open_teacher(), ModelTensors(draft)
    read_merged = _merged_reader(source, teacher)

    def in_memory(tensors: Mapping[str, Tensor], rows: Rows | None) -> Iterator[None]:
        for name, tensor in tensors.items():
            tensor.data = read_merged(name, rows, len(tensor)).to(tensor.dtype)
        yield
        for name, tensor in tensors.items():
            tensor.data = tensor.data.to(exported_dtype(source, teacher, name, exported)).to(tensor.dtype)
        yield

    def from_folder(tensors: Mapping[str, Tensor], rows: Rows | None) -> Iterator[None]:
        for name, tensor in tensors.items():
            tensor.data = _read(stored, stored_name(source, stored, name), rows, len(tensor)).to(tensor.dtype)
        yield

    model = hollow_model(source.config)
    missing = set(dict(model.named_parameters())) - {*source.plan.names, source.architecture.head}
    assert not missing, missing
    merged, rounded = _logits_of_forms(source, model, ids, in_memory, 2, done).chunk(2)
    config = load_config(str(draft), trust_remote_code=source.trust_remote_code)
    reloaded = _logits_of_forms(source, hollow_model(config), ids, from_folder, 1)
    done()
    return merged, rounded, reloaded


def _logits_of_forms(
    source: Source, model: Any, ids: Tensor, fill: Fill, forms: int, done: Callable[[], None] = lambda: None
) -> Tensor:
    """Run a hollow student on each form of its weights, beside each other: `[forms x batch, seq, vocabulary]`.

    Args:
        source: The checkpoint and its teacher.
        model: What `hollow_model` built.
        ids: `[batch, seq]`.
        fill: Gives a part's tensors their values, or of a table some rows, in one form after the other.
        forms: How many it has.
        done: Called when a layer has run.
    """
    architecture = source.architecture

    def weights(module: nn.Module, prefix: str, rows: Rows | None) -> Iterator[None]:
        """Give a module its weights in each form, then take them back."""
        tensors = {prefix + name: tensor for name, tensor in module.state_dict(keep_vars=True).items()}
        tensors = {name: tensor for name, tensor in tensors.items() if name in {*source.plan.names, architecture.head}}
        hollow = {name: tensor.data for name, tensor in tensors.items()}
        yield from fill(tensors, rows)
        for name, tensor in tensors.items():
            tensor.data = hollow[name]

    embedding, head = (name.rpartition(".")[0] for name in (architecture.embedding, architecture.head))
    layers = [f"{architecture.layers}.{index}" for index in range(architecture.num_layers)]
    for name in (embedding, *layers, architecture.norm):
        module = model.get_submodule(name)
        rows = ids.unique() if name == embedding else None
        _replace_forward(module, _in_shares, partial(weights, module, f"{name}.", rows), forms, len(ids))
        if name in layers:
            module.register_forward_hook(lambda *_: done())
    module = model.get_submodule(head)
    chunks = list(row_chunks(source.config.vocab_size, architecture.hidden_size))
    _replace_forward(module, _head_in_shares, partial(weights, module, f"{head}."), forms, chunks)
    logits: Tensor = model(input_ids=ids.repeat(forms, 1), use_cache=False).logits
    return logits


def _replace_forward(module: Any, forward: Callable[..., Any], *arguments: Any) -> None:
    module.forward = partial(forward, module.forward, *arguments)


def _in_shares(
    forward: Callable[..., Any],
    weights: Callable[[], Iterator[None]],
    forms: int,
    batch: int,
    *args: Any,
    **keywords: Any,
) -> Any:
    """Run each share of a batch, of `batch` rows, on weights of its own."""

    def share(index: int, value: Any) -> Any:
        is_split = isinstance(value, Tensor) and value.dim() > 0 and len(value) == forms * batch
        return value[index * batch : (index + 1) * batch] if is_split else value

    found = []
    for index, _ in enumerate(weights()):
        found.append(forward(*tree_map(partial(share, index), args), **tree_map(partial(share, index), keywords)))
    return tree_map(lambda *parts: torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0], *found)


def _head_in_shares(
    forward: Callable[[Tensor], Tensor],
    weights: Callable[[Rows], Iterator[None]],
    forms: int,
    chunks: list[tuple[int, int]],
    hidden: Tensor,
) -> Tensor:
    """Run a head, each share of the batch on weights of its own, some rows of them after the other."""
    shares = hidden.chunk(forms)
    found = [torch.cat([forward(shares[index]) for index, _ in enumerate(weights(rows))]) for rows in chunks]
    return torch.cat(found, -1)


def _merged_reader(source: Source, teacher: TeacherTensors) -> Callable[[str, Rows | None, int], Tensor]:
    """Return what reads merged tensors of the student as `_read` reads stored ones."""
    names = set(source.plan.names)

    def read(name: str, rows: Rows | None, size: int) -> Tensor:
        name = name if name in names else source.architecture.embedding  # the head of a tied student
        if rows is None:
            return merged_tensor(source, teacher, name)
        if isinstance(rows, tuple):
            return merged_rows(source, teacher, name, *rows)
        found = []  # in the very chunks of `write_student`: a row merged alone can round to other values
        for first, last in row_chunks(size, source.architecture.hidden_size):
            chosen = rows[(rows >= first) & (rows < last)]
            if len(chosen):
                found.append(merged_rows(source, teacher, name, first, last)[chosen - first])
        return _table(torch.cat(found), rows, size)

    return read


def _read(tensors: TeacherTensors, name: str, rows: Rows | None, size: int) -> Tensor:
    """Read a tensor of `size` rows, whole or some of its rows."""
    if rows is None:
        return tensors.read(name)
    if isinstance(rows, tuple):
        return tensors.rows(name, *rows)
    return _table(torch.cat([tensors.rows(name, row, row + 1) for row in rows.tolist()]), rows, size)


def _table(found: Tensor, rows: Tensor, size: int) -> Tensor:
    """Make a table of `size` rows in float32, of which all but some hold nothing."""
    table = torch.empty(size, *found.shape[1:])  # memory that nobody writes to is never taken
    table[rows] = found.float()
    return table


def hollow_model(config: Any) -> nn.Module:
    """Build a stock model in float32 whose weights are stand-ins; its buffers are real."""
    with accelerate.init_empty_weights(include_buffers=False):
        model: nn.Module = stock_model(config, dtype=torch.float32)
    hollow_out(model)
    return model.eval()


def hollow_out(model: nn.Module) -> None:
    """Put stand-ins in place of a model's parameters on the meta device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = nn.Parameter(stand_in(parameter), requires_grad=False)


def stand_in(tensor: Tensor) -> Tensor:
    """Make a tensor of the same shape and dtype on the CPU that takes no memory, all of it NaN."""
    return torch.full((), float("nan"), dtype=tensor.dtype).expand(tensor.shape)
