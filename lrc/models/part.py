"""A projected part: one teacher module, the student's empty twin, and the trained tensors between them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrc.clone.merge import merge
from lrc.clone.sites import Stage, Variant, projection_of, site_of
from lrc.models.discovery import Architecture
from lrc.models.held_teacher import HeldWeight, held_weights, merge_held


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """What is projected in one part; names relative to it."""

    d_teacher: int
    d_student: int
    merges: dict[str, tuple[str, int]]
    """Tensor name -> (projection name, hidden axis)."""
    gains: tuple[str, ...]

    @property
    def projections(self) -> tuple[str, ...]:
        """Projection names, each once."""
        return tuple(dict.fromkeys(projection for projection, _ in self.merges.values()))


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What a part is made of."""

    teacher: nn.Module
    twin: nn.Module
    """The student's stock module, parameters on the meta device."""
    prefix: str
    """The module's name in the stock model, with a dot at the end."""
    plan: PartPlan


class ProjectedPart(nn.Module):
    """A teacher module, the student's empty twin, and the trained tensors that turn one into the other."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        plan = pieces.plan
        self.teacher = pieces.teacher
        # in a tuple, so that the twin's parameters (on the meta device) are nobody's parameters: a tensor that the
        # merge forgets has no values to fall back on
        self._twin = (pieces.twin,)
        self.prefix = pieces.prefix
        self.plan = plan
        # buffers that a checkpoint holds (a router's correction) are the teacher's, made ones (rotary) the twin's;
        # listed once, since FSDP frees gathered weights whenever a state dict is made
        stored = pieces.teacher.state_dict(keep_vars=True)
        self._stored_buffers = {name for name, _ in pieces.teacher.named_buffers() if name in stored}
        self._held = held_weights(pieces.teacher)
        # a norm without a gain has nothing to train
        tensors: list[Tensor | HeldWeight] = [*pieces.teacher.parameters(), *self._held.values()]
        device = next((tensor.device for tensor in tensors), None)
        self.projections = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.zeros(plan.d_teacher, plan.d_student, device=device))
                for name in plan.projections
            }
        )
        self.gains = nn.ParameterDict(
            {_key(name): nn.Parameter(torch.zeros(plan.d_student, device=device)) for name in plan.gains}
        )

    def train(self, mode: bool = True) -> "ProjectedPart":
        """Switch the part's mode; the teacher never drops activations or jitters a router."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def twin(self) -> nn.Module:
        """The student's stock module, without weights."""
        return self._twin[0]

    def projection(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return the projection `name`, `[d_T, d_S]`, in the compute dtype."""
        result: Tensor = self.projections[_key(name)].to(dtype)
        return result

    def parameter(self, name: str) -> nn.Parameter:
        """Return the master copy of a projection (float32, `[d_T, d_S]`) or gain (`[d_S]`) by its plan's name."""
        found: nn.Parameter = self.gains[_key(name)] if name in self.plan.gains else self.projections[_key(name)]
        return found

    def student_tensors(self) -> dict[str, Tensor]:
        """Evaluate every tensor of the twin: merged, trained or inherited; names relative to the part."""
        teacher = dict(self.teacher.named_parameters())
        own: list[Tensor | HeldWeight] = [*teacher.values(), *self._held.values()]
        dtype = next((tensor.dtype for tensor in own), torch.float32)
        projections = {name: self.projection(name, dtype) for name in self.plan.projections}
        theirs = {name: value for name, value in self.teacher.named_buffers() if name in self._stored_buffers}
        tensors: dict[str, Tensor] = dict(self.twin.named_buffers()) | theirs
        for name, _ in self.twin.named_parameters():
            if name in self.plan.merges:
                projection, axis = self.plan.merges[name]
                if name in self._held:
                    tensors[name] = merge_held(self._held[name], projections[projection], axis)
                else:
                    tensors[name] = merge(teacher[name], projections[projection], axis)
            elif name in self.plan.gains:
                tensors[name] = self.gains[_key(name)].to(dtype)
            else:
                tensors[name] = teacher[name]
        return tensors

    def trained(self) -> dict[str, nn.Parameter]:
        """List the trained tensors by their checkpoint names."""
        named = {
            f"projections.{self.prefix}{name}".rstrip("."): self.projections[_key(name)]
            for name in self.plan.projections
        }
        return named | {f"gains.{self.prefix}{name}": self.gains[_key(name)] for name in self.plan.gains}


def part_plan(architecture: Architecture, variant: Variant, d_student: int, prefix: str) -> PartPlan:
    """Collect what is projected below `prefix` (a module path ending in a dot, or a module's own path and a dot)."""
    merges: dict[str, tuple[str, int]] = {}
    stages = _stages_below(architecture, prefix)
    for name, entry in architecture.projected.items():
        if not name.startswith(prefix):
            continue
        inner = name.removeprefix(prefix)
        site = site_of(inner)
        stage = next((stage for stage in stages if site in (*stage.readers, *stage.writers)), None)
        merges[inner] = (projection_of(site, stage, variant) if stage else site, entry.axis)
    gains = tuple(name.removeprefix(prefix) for name in architecture.gains if name.startswith(prefix))
    return PartPlan(d_teacher=architecture.hidden_size, d_student=d_student, merges=merges, gains=gains)


def _stages_below(architecture: Architecture, prefix: str) -> tuple[Stage, ...]:
    if not prefix.startswith(f"{architecture.layers}."):
        return ()
    return architecture.stages[int(prefix.removeprefix(f"{architecture.layers}.").partition(".")[0])]


def _key(name: str) -> str:
    # ParameterDict refuses dots and empty names
    return name.replace(".", "/") or "whole"
