"""The merge plan: for every tensor of the stock student, where it comes from. Export reads it; training agrees."""

from dataclasses import dataclass

from torch import Tensor

from lrc.clone.merge import merge
from lrc.clone.sites import Variant
from lrc.errors import CheckpointError
from lrc.models.discovery import Architecture
from lrc.models.part import part_plan


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """Names of trained tensors by student tensor."""

    merges: dict[str, tuple[str, int]]
    """Student tensor -> (projection's checkpoint name, hidden axis of the teacher's tensor)."""
    gains: dict[str, str]
    """Student tensor -> gain's checkpoint name."""
    inherited: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Every tensor of the student: merged, gains, inherited."""
        return [*self.merges, *self.gains, *self.inherited]

    @property
    def trained(self) -> set[str]:
        """Every trained tensor that the plan needs."""
        return {projection for projection, _ in self.merges.values()} | set(self.gains.values())


def merge_plan(architecture: Architecture, variant: Variant) -> MergePlan:
    """Plan the student of an architecture.

    A student's head is its embedding only if the teacher's is and both share one projection; otherwise the head is a
    tensor of its own, merged from the teacher's (tied) head.
    """
    embedding, head = (name.rpartition(".")[0] for name in (architecture.embedding, architecture.head))
    prefixes = [f"{embedding}.", *(f"{architecture.layers}.{index}." for index in range(architecture.num_layers))]
    prefixes += [f"{architecture.norm}.", f"{head}."]
    merges, gains = {}, {}
    for prefix in prefixes:
        plan = part_plan(architecture, variant, 0, prefix)
        for inner, (projection, axis) in plan.merges.items():
            merges[prefix + inner] = (f"projections.{prefix}{projection}".rstrip("."), axis)
        gains.update({prefix + inner: f"gains.{prefix}{inner}" for inner in plan.gains})
    if variant.tie_embedding_projection:
        merges[architecture.head] = (f"projections.{embedding}", merges[architecture.head][1])
        if architecture.is_tied:
            del merges[architecture.head]
    return MergePlan(merges=merges, gains=gains, inherited=architecture.inherited)


def check_trained(plan: MergePlan, trained: dict[str, Tensor], d_teacher: int, d_student: int) -> None:
    """Check that trained tensors are those of the plan, in name and shape.

    Raises:
        CheckpointError: One is missing, left over or of another size.
    """
    missing, extra = sorted(plan.trained - set(trained)), sorted(set(trained) - plan.trained)
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which this student does not"
        raise CheckpointError(
            f"The checkpoint {what} ({len(missing)} missing, {len(extra)} left over). It belongs to another teacher "
            "or to other attention, ffn or tie settings."
        )
    for name, tensor in trained.items():
        wanted = [d_teacher, d_student] if name.startswith("projections.") else [d_student]
        if list(tensor.shape) != wanted:
            raise CheckpointError(f"The checkpoint's {name} must be {wanted}, found {list(tensor.shape)}.")


def student_tensor(plan: MergePlan, name: str, teacher: Tensor, trained: dict[str, Tensor]) -> Tensor:
    """Evaluate one student tensor: merged and gains in float32, inherited ones as the teacher stores them.

    Args:
        plan: The student's plan.
        name: A member of `plan.names`.
        teacher: The teacher's tensor of that name (the embedding's for a tied head).
        trained: Trained tensors by checkpoint name, float32.
    """
    if name in plan.merges:
        projection, axis = plan.merges[name]
        return merge(teacher.float(), trained[projection].float(), axis)
    if name in plan.gains:
        return trained[plan.gains[name]].float()
    return teacher
