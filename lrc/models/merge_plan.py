"""The merge plan: for every tensor of the stock student, where it comes from. Export reads it; training agrees."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lrc.clone.merge import merge
from lrc.clone.sites import Variant, corrected_weights
from lrc.errors import CheckpointError, ConfigError
from lrc.models.dense import Dense
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
    free: dict[str, str] = field(default_factory=dict)
    """Student tensor -> free weight's checkpoint name; added to the merged one if the tensor is in `merges` too."""
    corrections: dict[str, str] = field(default_factory=dict)
    """Student tensor -> checkpoint name of what is added to the merged one and never trained."""
    spare: frozenset[str] = frozenset()
    """Checkpoint names that training may store beside: projections that only clone terms use."""

    @property
    def names(self) -> list[str]:
        """Every tensor of the student: merged, gains, free, inherited."""
        return [*self.merges, *self.gains, *(name for name in self.free if name not in self.merges), *self.inherited]

    @property
    def trained(self) -> set[str]:
        """Every trained tensor that the plan needs."""
        projections = {projection for projection, _ in self.merges.values()}
        return projections | set(self.gains.values()) | set(self.free.values())

    @property
    def stored(self) -> set[str]:
        """Every tensor that a checkpoint must hold."""
        return self.trained | set(self.corrections.values())


def merge_plan(architecture: Architecture, variant: Variant, dense: Dense | None = None) -> MergePlan:
    """Plan the student of an architecture; of a student from scratch and in a dense phase `dense` is free.

    A student's head is its embedding only if the teacher's is and both share one projection; otherwise the head is a
    tensor of its own, merged from the teacher's (tied) head.
    """
    embedding, head = (name.rpartition(".")[0] for name in (architecture.embedding, architecture.head))
    prefixes = [f"{embedding}.", *(f"{architecture.layers}.{index}." for index in range(architecture.num_layers))]
    prefixes += [f"{architecture.norm}.", f"{head}."]
    merges: dict[str, tuple[str, int]] = {}
    gains, free, corrections = {}, {}, {}
    for prefix in prefixes:
        plan = part_plan(architecture, variant, 0, prefix, dense)
        for inner, (projection, axis) in plan.merges.items():
            merges[prefix + inner] = (f"projections.{prefix}{projection}".rstrip("."), axis)
        gains.update({prefix + inner: f"gains.{prefix}{inner}" for inner in plan.gains})
        free.update({prefix + inner: f"dense.{prefix}{inner}" for inner in plan.dense})
        corrections.update({prefix + inner: f"corrections.{prefix}{inner}" for inner in plan.corrections})
    if variant.tie_embedding_projection:
        if architecture.head in merges:
            merges[architecture.head] = (f"projections.{embedding}", merges[architecture.head][1])
        if architecture.is_tied:
            merges.pop(architecture.head, None)
            free.pop(architecture.head, None)
    inherited = tuple(name for name in architecture.inherited if name not in free)
    spare: frozenset[str] = frozenset()
    if dense is not None and dense.form == "replace":
        spare = frozenset(merge_plan(architecture, variant).trained)
    return MergePlan(merges=merges, gains=gains, inherited=inherited, free=free, corrections=corrections, spare=spare)


def check_corrected(architecture: Architecture, variant: Variant) -> None:
    """Check that a student that is to have corrections has a place for one that a start can fit.

    Raises:
        ConfigError: It has none.
    """
    if variant.correction == "none":
        return
    if not merge_plan(architecture, variant).corrections:
        raise ConfigError(
            f"student.correction = {variant.correction} needs MLPs that are modules with one output weight each, and "
            f"{architecture.model_type} has none. Leave it at none."
        )
    corrected = [stage for stages in architecture.stages for stage in stages if corrected_weights(stage, variant)]
    if not any(stage.residual == 1 or (stage.residual is not None and stage.post_norm is None) for stage in corrected):
        raise ConfigError(
            f"student.correction = {variant.correction} could do nothing for {architecture.model_type}, whose MLPs run "
            "beside another stage or whose outputs are not simply added, so that no start can tell what they have to "
            "make. Set student.correction=none."
        )


def check_trained(plan: MergePlan, trained: dict[str, Tensor], d_teacher: int, d_student: int) -> None:
    """Check that trained tensors are those of the plan, in name and shape.

    Raises:
        CheckpointError: One is missing, left over or of another size.
    """
    missing, extra = sorted(plan.stored - set(trained)), sorted(set(trained) - plan.stored - plan.spare)
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which this student does not"
        raise CheckpointError(
            f"The checkpoint {what} ({len(missing)} missing, {len(extra)} left over). It belongs to another teacher "
            "or to other attention, ffn or tie settings, or one of the two has corrections and the other has not."
        )
    for name, tensor in trained.items():
        if name.startswith(("dense.", "corrections.")):
            continue
        wanted = [d_teacher, d_student] if name.startswith("projections.") else [d_student]
        if list(tensor.shape) != wanted:
            raise CheckpointError(f"The checkpoint's {name} must be {wanted}, found {list(tensor.shape)}.")


def check_free(plan: MergePlan, trained: dict[str, Tensor], student: nn.Module) -> None:
    """Check that free weights and corrections have the shapes of the student's tensors (`student` may be empty).

    Raises:
        CheckpointError: One has another shape.
    """
    shapes = {name: list(value.shape) for name, value in student.named_parameters(remove_duplicate=False)}
    for name, stored in (*plan.free.items(), *plan.corrections.items()):
        if list(trained[stored].shape) != shapes[name]:
            raise CheckpointError(
                f"The checkpoint's {stored} must be {shapes[name]}, found {list(trained[stored].shape)}."
            )


def student_tensor(
    plan: MergePlan, name: str, teacher: Tensor, trained: Mapping[str, Tensor], rows: slice | None = None
) -> Tensor:
    """Evaluate one student tensor: merged, gains and free ones in float32, inherited ones as the teacher stores them.

    Args:
        plan: The student's plan.
        name: A member of `plan.names`.
        teacher: The teacher's tensor of that name (the embedding's for a tied head).
        trained: Trained tensors by checkpoint name, float32.
        rows: The rows that `teacher` is and that are wanted, of a tensor that reads the stream; None: all.
    """
    chosen = slice(None) if rows is None else rows
    if name in plan.merges:
        projection, axis = plan.merges[name]
        merged = merge(teacher.float(), trained[projection].float(), axis)
        if name in plan.corrections:
            merged = merged + trained[plan.corrections[name]].float()
        return merged + trained[plan.free[name]][chosen].float() if name in plan.free else merged
    if name in plan.gains:
        return trained[plan.gains[name]].float()
    if name in plan.free:
        return trained[plan.free[name]][chosen].float()
    return teacher
