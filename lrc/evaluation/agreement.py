"""How near a student's next-token distributions are to its teacher's: one formula for training, start and scorecard."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrc.clone.head import IGNORED_LABEL, chunk_positions, float32_logits, softcapped
from lrc.models.pair_model import PairModel

JOINED_POSITIONS = 1024
"""Held-out positions that are measured with one merge of the student, where windows are shorter."""


@dataclass
class Agreement:
    """Sums over labelled positions; the properties are means. Natural logs, temperature 1, float32 logits."""

    positions: int = 0
    kl_sum: float = 0.0
    cross_entropy_sum: float = 0.0
    teacher_cross_entropy_sum: float = 0.0
    top1_hits: int = 0
    top5_hits: int = 0

    @property
    def kl(self) -> float:
        """Mean KL(teacher || student), nats."""
        return self.kl_sum / max(1, self.positions)

    @property
    def cross_entropy(self) -> float:
        """Mean cross entropy of the student, nats."""
        return self.cross_entropy_sum / max(1, self.positions)

    @property
    def teacher_cross_entropy(self) -> float:
        """Mean cross entropy of the teacher, nats."""
        return self.teacher_cross_entropy_sum / max(1, self.positions)

    @property
    def top1_agreement(self) -> float:
        """Share of positions where both models' first choice is the same token."""
        return self.top1_hits / max(1, self.positions)

    @property
    def top5_agreement(self) -> float:
        """Share of positions where the teacher's first choice is among the student's first five."""
        return self.top5_hits / max(1, self.positions)

    def add(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
        """Add positions: logits `[positions, vocabulary]`, labels `[positions]` with -100 for none."""
        keep = labels != IGNORED_LABEL
        if not bool(keep.all()):
            student_logits, teacher_logits, labels = student_logits[keep], teacher_logits[keep], labels[keep]
        student, teacher = student_logits.float(), teacher_logits.float()
        best = teacher.argmax(-1, keepdim=True)
        first_choices = student.topk(min(5, student.shape[-1]), -1).indices == best
        log_p, log_t = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
        self.positions += labels.numel()
        self.cross_entropy_sum -= float(log_p.gather(-1, labels[:, None]).sum())
        self.teacher_cross_entropy_sum -= float(log_t.gather(-1, labels[:, None]).sum())
        self.kl_sum += float(torch.linalg.vecdot(log_t.exp(), log_t.sub_(log_p)).sum())
        self.top1_hits += int(first_choices[:, 0].sum())
        self.top5_hits += int(first_choices.any(-1).sum())

    def summary(self) -> dict[str, float | int]:
        """Return the means as they stand in `metrics.jsonl` and `start.json`."""
        return {
            "kl": self.kl,
            "cross_entropy": self.cross_entropy,
            "teacher_cross_entropy": self.teacher_cross_entropy,
            "top1_agreement": self.top1_agreement,
            "top5_agreement": self.top5_agreement,
            "positions": self.positions,
        }


@torch.no_grad()
def measure_pair(pair: PairModel, batches: Iterable[tuple[Tensor, Tensor]]) -> Agreement:
    """Compare both models of a pair on held-out text.

    Args:
        pair: The pair, on any device.
        batches: (ids, labels) `[batch, seq]` each; labels are the next tokens, -100 where there is none.
    """
    agreement = Agreement()
    device = next(iter(pair.trained().values())).device
    for ids, labels in _joined(batches):
        student, teacher, _ = pair.hidden_states(ids.to(device), None)
        rows = (student.flatten(0, 1), teacher.flatten(0, 1), labels.to(device).flatten())
        pair.head(_add_rows, agreement, rows, pair.softcap)
    return agreement


@torch.no_grad()
def measure_states(
    student: Tensor, teacher: Tensor, labels: Tensor, student_head: Tensor, teacher_head: Tensor
) -> Agreement:
    """Compare the logits of states, `[positions, d_S]` and `[positions, d_T]`, under heads `[vocabulary, d]`.

    Args:
        student: What the student's head reads.
        teacher: What the teacher's reads.
        labels: `[positions]`, -100 where a position counts nowhere.
        student_head: The student's head.
        teacher_head: The teacher's.
    """
    agreement = Agreement()
    _add_rows(student_head, teacher_head, agreement, (student, teacher, labels), None)
    return agreement


def _joined(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Put neighbours of one length together, so that a merge serves up to `JOINED_POSITIONS` positions."""
    held: list[tuple[Tensor, Tensor]] = []
    for pair in batches:
        positions = sum(ids.numel() for ids, _ in (*held, pair))
        if held and (held[0][0].shape[1] != pair[0].shape[1] or positions > JOINED_POSITIONS):
            yield _together(held)
            held = []
        held.append(pair)
    if held:
        yield _together(held)


def _together(held: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    ids, labels = zip(*held, strict=True)
    return torch.cat(ids), torch.cat(labels)


def _add_rows(
    student_head: Tensor, teacher_head: Tensor, agreement: Agreement, rows: tuple[Tensor, ...], softcap: float | None
) -> None:
    """Add the positions of one batch, a chunk of logits at a time."""
    labelled = rows[2] != IGNORED_LABEL
    chunk = chunk_positions(len(student_head), positions=int(labelled.sum()))
    for student, teacher, labels in zip(*(side[labelled].split(chunk) for side in rows), strict=True):
        ours, theirs = float32_logits(student, student_head), float32_logits(teacher, teacher_head)
        agreement.add(softcapped(ours, softcap), softcapped(theirs, softcap), labels)
