"""How well a model answers held-out chats, and how near it is to its teacher there: the answers' tokens alone count."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lrc.clone.head import IGNORED_LABEL, chunk_positions, float32_logits, softcapped
from lrc.evaluation.agreement import Agreement
from lrc.models.head_reader import HeadReader


@torch.no_grad()
def measure_chats(
    student: Any, teacher: Any | None, chats: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> dict[str, float | int]:
    """Measure a model on chats, one at a time; logits in float32.

    Args:
        student: Stock causal LM.
        teacher: The one to compare with, or None.
        chats: (ids, labels) of each; labels are the ids that are learnt, not shifted, -100 elsewhere.

    Returns:
        The held-out measures (`Agreement.summary`); without a teacher `cross_entropy` and `positions` alone.
    """
    was_training = student.training
    student.eval()
    readers = [HeadReader(model) for model in (student, teacher) if model is not None]
    heads = [reader.matrix() for reader in readers]
    agreement = Agreement()
    for ids, labels in chats:
        targets = torch.tensor(labels[1:], device=heads[0].device)
        learnt = targets != IGNORED_LABEL
        chunk = chunk_positions(len(heads[0]), positions=int(learnt.sum()))
        states = [_states(reader, ids)[:-1][learnt].split(chunk) for reader in readers]
        for rows in zip(*states, targets[learnt].split(chunk), strict=True):
            logits = [
                softcapped(float32_logits(row, head), reader.softcap)
                for row, head, reader in zip(rows, heads, readers, strict=False)
            ]
            agreement.add(logits[0], logits[-1], rows[-1])
    student.train(was_training)
    summary = agreement.summary()
    return summary if teacher is not None else {key: summary[key] for key in ("cross_entropy", "positions")}


def _states(reader: HeadReader, ids: Sequence[int]) -> Tensor:
    """What the head reads at each token of one chat, `[seq, hidden]`."""
    device = next(reader.model.parameters()).device
    output: Any = reader.base(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    return reader.inputs(output.last_hidden_state[0])
