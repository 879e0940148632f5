"""The pair of heads: both matrices, and what the objective makes of the states that meet them."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from lrc.clone.head import HeadWeights, head_losses, is_cheaper_straight
from lrc.models.liger_head import liger_losses
from lrc.models.part import ProjectedPart

Result = TypeVar("Result")


class PairHead(ProjectedPart):
    """Both heads; what is made of them is made inside, where a sharding strategy has gathered their weights."""

    merge_shared_by = 1
    """Micro-batches that share one merge (`models/step_weights.py`)."""

    @property
    def has_bias(self) -> bool:
        """Whether the heads have a bias, which the student inherits."""
        return "bias" in dict(self.teacher.named_parameters())

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the student's merged head `[vocabulary, d_S]` and the teacher's `[vocabulary, d_T]`.

        A bias, which the student inherits, is one more column of both.
        """
        return head_matrix(self.student_tensors()), head_matrix(dict(self.teacher.named_parameters()))

    def forward(self, use: Callable[..., Result], *arguments: Any, straight: bool = False) -> Result:
        """Call `use(student_head, teacher_head, *arguments)`.

        Args:
            use: What is made of the matrices.
            arguments: Passed on.
            straight: Give `use` the projection too, as `projection`, and the merged matrix without a gradient.
        """
        if not straight:
            return use(*self.matrices(), *arguments)
        with torch.no_grad():
            student_head, teacher_head = self.matrices()
        return use(student_head, teacher_head, *arguments, projection=self.parameter(self.plan.merges["weight"][0]))

    def losses(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        weights: HeadWeights,
        *,
        takes_liger: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what `head_losses` does of the states that the heads read, `[positions, hidden]` each."""

        def liger(student_head: Tensor, teacher_head: Tensor, student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return liger_losses(student, teacher, student_head, teacher_head, labels, weights=weights)

        def own(
            student_head: Tensor, teacher_head: Tensor, student: Tensor, projection: Tensor | None = None
        ) -> tuple[Tensor, Tensor, Tensor]:
            return head_losses(
                student, teacher, student_head, teacher_head, labels, weights=weights, projection=projection
            )

        if takes_liger:
            return self(liger, student)  # type: ignore[no-any-return]  # a module's call
        return self(own, student, straight=self.is_cheaper_straight(len(student)))  # type: ignore[no-any-return]  # a module's call

    def is_cheaper_straight(self, positions: int) -> bool:
        """Whether a micro-batch's gradient goes straight to the projection (`clone/head.py:is_cheaper_straight`)."""
        if self.has_bias or set(self.plan.merges) != {"weight"} or self.plan.dense or self._held:
            return False
        vocabulary = self.teacher.get_parameter("weight").shape[0]
        sharing = positions * self.merge_shared_by
        return is_cheaper_straight(vocabulary, self.plan.d_teacher, self.plan.d_student, positions=sharing)


def head_matrix(tensors: dict[str, Tensor]) -> Tensor:
    """Return a head's weight, `[vocabulary, hidden]`; its bias, if it has one, is one more column."""
    return torch.cat((tensors["weight"], tensors["bias"][:, None]), 1) if "bias" in tensors else tensors["weight"]


def with_one(hidden: Tensor) -> Tensor:
    """Put a one behind hidden states, for a head matrix whose last column is a bias."""
    return torch.cat((hidden, torch.ones_like(hidden[..., :1])), -1)
