"""Plan: what discovery finds in a teacher, what a student of a width would be, and whether the family is supported."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from lrc.export.size_advice import size_advice
from lrc.models.discovery import Architecture, discover
from lrc.models.oddities import oddities
from lrc.models.oracles import require_family
from lrc.models.stock import stock_model
from lrc.models.student import student_config
from lrc.models.teacher import load_config, read_config
from lrc.models.text_tower import holds_a_head, is_composite
from lrc.verbs.sources import locate_teacher

_NUMBER = re.compile(r"\.\d+\.")


def plan(teacher: str, *, hidden_size: int, trust_remote_code: bool = False) -> list[str]:
    """Describe the student of a teacher's config; no weights are read.

    Args:
        teacher: Folder or hub id.
        hidden_size: The student's width.
        trust_remote_code: Run code that comes with the teacher.

    Returns:
        Lines to print, the last one `supported: ...`.

    Raises:
        ConfigError: The teacher or the width is not supported; the text is the reason.
    """
    source = locate_teacher(teacher)
    config = load_config(source, trust_remote_code=trust_remote_code)
    whole = read_config(source, trust_remote_code=trust_remote_code)
    architecture = discover(config)
    student = student_config(config, hidden_size, tied=False)
    require_family(config)
    odd = oddities(architecture, config)
    if is_composite(whole):
        if architecture.is_tied and holds_a_head(source) is None:
            odd.insert(0, "the head is tied, as the config says; a head in the weights, unseen here, would untie it")
        odd.insert(0, f"the text tower of a {whole.model_type}; the student is what the teacher is on text alone")
    return [
        f"{teacher}: {architecture.model_type}, hidden size {architecture.hidden_size}, {architecture.num_layers} "
        f"layers, {'tied' if architecture.is_tied else 'untied'} head",
        *_found(architecture),
        *(f"odd        {line}" for line in odd or ["nothing"]),
        f"student    hidden size {hidden_size}, {_parameters(student):,} parameters (teacher {_parameters(config):,})",
        *(f"size       {line}" for line in size_advice(config, hidden_size)),
        f"supported: {architecture.model_type}; its identity, merge and gradient oracles pass on a tiny random model",
    ]


def _found(architecture: Architecture) -> list[str]:
    entries = architecture.projected.values()
    groups = {
        "readers": [entry.name for entry in entries if entry.role == "reader"],
        "writers": [entry.name for entry in entries if entry.role == "writer"],
        "gains": architecture.gains,
        "inherited": architecture.inherited,
    }
    return [f"{title:<10} {line}" for title, names in groups.items() for line in _by_layer(names)]


def _by_layer(names: Iterable[str]) -> list[str]:
    """Names with their layer's number left out, and how many layers have them."""
    counts = Counter(_NUMBER.sub(".*.", name, count=1) for name in names)
    return [f"{name} x {count}" if count > 1 else name for name, count in counts.items()] or ["none"]


def _parameters(config: Any) -> int:
    """Parameters of a config's model, a tied head counted once."""
    with torch.device("meta"):
        model = stock_model(config)
    return sum(parameter.numel() for parameter in model.parameters())
