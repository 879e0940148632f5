"""A projected part: one teacher module, the student's empty twin, and the trained tensors between them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrc.clone.merge import merge
from lrc.clone.sites import Stage, Variant, projection_of, site_of
from lrc.models.corrected import corrected_places
from lrc.models.dense import Dense, dense_names
from lrc.models.discovery import Architecture
from lrc.models.held_teacher import HeldWeight, held_weights, merge_held
from lrc.models.student import change_buffers


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """What is projected in one part; names relative to it."""

    d_teacher: int
    d_student: int
    merges: dict[str, tuple[str, int]]
    """Tensor name -> (projection name, hidden axis)."""
    gains: tuple[str, ...]
    dense: tuple[str, ...] = ()
    """Names of free tensors; one that is in `merges` too is added to the merged one."""
    corrections: tuple[str, ...] = ()
    """Names of merged tensors that a fixed correction is added to."""

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

    is_merged_whole = True
    """Every forward merges all of the part's tensors, so that a step's micro-batches can share them."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        plan = pieces.plan
        self.teacher = pieces.teacher
        # in a tuple, so that the twin's parameters (on the meta device) are nobody's parameters: a tensor that the
        # merge forgets has no values to fall back on
        self._twin = (pieces.twin,)
        self.prefix = pieces.prefix
        self.plan = plan
        self.formed: dict[str, Tensor] | None = None
        """The step's merged tensors (`models/step_weights.py`); None: each forward merges."""
        # buffers that a checkpoint holds (a router's correction) are the teacher's, made ones (rotary) the twin's;
        # listed once, since FSDP frees gathered weights whenever a state dict is made
        stored = pieces.teacher.state_dict(keep_vars=True)
        self._stored_buffers = {name for name, _ in pieces.teacher.named_buffers() if name in stored}
        self._held = held_weights(pieces.teacher)
        # a norm without a gain has nothing to train
        device = self._device()
        self.projections = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.zeros(plan.d_teacher, plan.d_student, device=device))
                for name in plan.projections
            }
        )
        self.gains = nn.ParameterDict(
            {_key(name): nn.Parameter(torch.zeros(plan.d_student, device=device)) for name in plan.gains}
        )
        self.dense = nn.ParameterDict()
        self.corrections = nn.ParameterDict({_key(name): self._no_correction(name) for name in plan.corrections})

    def train(self, mode: bool = True) -> "ProjectedPart":
        """Switch the part's mode; the teacher never drops activations or jitters a router."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ProjectedPart":
        """Move the twin's made buffers (rotary) along, which are nobody's either."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        change_buffers(self.twin, fn)
        return self

    @property
    def twin(self) -> nn.Module:
        """The student's stock module, without weights."""
        return self._twin[0]

    def projection(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return the projection `name`, `[d_T, d_S]`, in the dtype that it is used in."""
        result: Tensor = self.projections[_key(name)].to(dtype)
        return result

    def parameter(self, name: str) -> nn.Parameter:
        """Return the master copy of a projection (float32, `[d_T, d_S]`) or gain (`[d_S]`) by its plan's name."""
        found: nn.Parameter = self.gains[_key(name)] if name in self.plan.gains else self.projections[_key(name)]
        return found

    def student_tensors(self) -> dict[str, Tensor]:
        """Evaluate every tensor of the twin: merged, trained or inherited; names relative to the part.

        Each is in the dtype of the teacher's, which may be float32 among others (a router's).
        """
        teacher = dict(self.teacher.named_parameters())
        dtypes = {name: value.dtype for name, value in self._teacher_tensors().items()}
        merged = self.merged_tensors() if self.formed is None else self.formed
        theirs = {name: value for name, value in self.teacher.named_buffers() if name in self._stored_buffers}
        tensors: dict[str, Tensor] = dict(self.twin.named_buffers()) | theirs
        for name, _ in self.twin.named_parameters():
            if name in merged:
                tensors[name] = merged[name]
                if name in self.plan.dense:
                    tensors[name] = tensors[name] + self.dense[_key(name)].to(dtypes[name])
            elif name in self.plan.gains:
                tensors[name] = self.gains[_key(name)].to(dtypes[name])
            elif name in self.plan.dense:
                tensors[name] = self.dense[_key(name)].to(dtypes[name])
            else:
                tensors[name] = teacher[name]
        return tensors

    def merged_tensors(self) -> dict[str, Tensor]:
        """Merge every tensor of the twin that is merged, in its own dtype; names relative to the part.

        A correction is added to it.
        """
        teacher = self._teacher_tensors()
        wanted = {name for name, _ in self.twin.named_parameters()} & self.plan.merges.keys()
        projections: dict[tuple[str, torch.dtype], Tensor] = {}
        merged: dict[str, Tensor] = {}
        for name, (projection, axis) in self.plan.merges.items():
            if name not in wanted:
                continue
            weight = teacher[name]
            key = projection, weight.dtype
            if key not in projections:
                projections[key] = self.projection(projection, weight.dtype)
            if isinstance(weight, HeldWeight):
                merged[name] = merge_held(weight, projections[key], axis)
            else:
                merged[name] = merge(weight, projections[key], axis)
            if name in self.plan.corrections:
                merged[name] = merged[name] + self.correction(name).to(weight.dtype)
        return merged

    def merged_apart(self) -> dict[str, Tensor]:
        """Merge outside of the part's forward; a strategy that shards the part gathers it for this call."""
        return self.merged_tensors()

    def _teacher_tensors(self) -> dict[str, Tensor | HeldWeight]:
        """The teacher's weights by name, held ones first: their pieces may be parameters, of the format's dtypes.

        A norm without a gain has none.
        """
        return {**self._held, **dict(self.teacher.named_parameters())}

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the part's forward: the teacher's."""
        return next((tensor.dtype for tensor in self._teacher_tensors().values()), torch.float32)

    def _device(self) -> torch.device | None:
        return next((tensor.device for tensor in self._teacher_tensors().values()), None)

    def trained(self) -> dict[str, nn.Parameter]:
        """List the trained tensors by their checkpoint names."""
        named = {self._projection_name(name): self.projections[_key(name)] for name in self.plan.projections}
        named |= {f"gains.{self.prefix}{name}": self.gains[_key(name)] for name in self.plan.gains}
        return named | {f"dense.{self.prefix}{name}": self.dense[_key(name)] for name in self.plan.dense}

    def frozen(self) -> dict[str, nn.Parameter]:
        """List by checkpoint name the corrections, and the projections that only clone points still need."""
        spare = {
            self._projection_name(_name(key)): value
            for key, value in self.projections.items()
            if _name(key) not in self.plan.projections
        }
        return spare | {f"corrections.{self.prefix}{_name(key)}": value for key, value in self.corrections.items()}

    def stored(self) -> dict[str, nn.Parameter]:
        """List what a checkpoint holds of the part, by its names: what is trained and what is frozen."""
        return self.trained() | self.frozen()

    def correction(self, name: str) -> nn.Parameter:
        """Return the correction of a tensor, float32 and of the shape of the student's; names relative to the part."""
        found: nn.Parameter = self.corrections[_key(name)]
        return found

    def _no_correction(self, name: str) -> nn.Parameter:
        shape = self.twin.get_parameter(name).shape
        return nn.Parameter(torch.zeros(shape, device=self._device()), requires_grad=False)

    def _projection_name(self, name: str) -> str:
        return f"projections.{self.prefix}{name}".rstrip(".")

    @torch.no_grad()
    def merged(self, name: str) -> Tensor:
        """Merge a tensor of the plan as export does, in the projections' dtype (float32)."""
        projection, axis = self.plan.merges[name]
        master = self.projections[_key(projection)]
        merged = merge(self.teacher.get_parameter(name).to(master.dtype), master, axis)
        if name in self.plan.corrections:
            merged = merged + self.correction(name)
        return merged.contiguous()

    def dense_start(self, plan: PartPlan) -> dict[str, Tensor]:
        """Return the values that `plan`'s free tensors start at: merged where they replace a merge, else zero."""
        shapes = {name: value.shape for name, value in self.twin.named_parameters()}
        device = self._device()
        return {
            name: self.merged(name)
            if name in self.plan.merges and name not in plan.merges
            else torch.zeros(shapes[name], device=device)
            for name in plan.dense
        }

    def enter(self, plan: PartPlan, start: dict[str, Tensor], kept: Collection[str]) -> None:
        """Train by another plan of the same part; what both plans train stays the very same parameter.

        Args:
            plan: What is projected and what is free from here on.
            start: What `dense_start` returned for it.
            kept: Projections that stay, frozen, if the plan has no other use for them.
        """
        wanted = {*plan.projections, *kept}
        for key in [key for key in self.projections if _name(key) not in wanted]:
            del self.projections[key]
        for name in (name for name in plan.projections if _key(name) not in self.projections):
            zeros = torch.zeros(plan.d_teacher, plan.d_student, device=self._device())
            self.projections[_key(name)] = nn.Parameter(zeros)
        for key, projection in self.projections.items():
            projection.requires_grad_(_name(key) in plan.projections)
        for key in [key for key in self.dense if _name(key) not in plan.dense]:
            del self.dense[key]
        for name in (name for name in plan.dense if _key(name) not in self.dense):
            self.dense[_key(name)] = nn.Parameter(start[name])
        for key in [key for key in self.corrections if _name(key) not in plan.corrections]:
            del self.corrections[key]
        for name in (name for name in plan.corrections if _key(name) not in self.corrections):
            self.corrections[_key(name)] = self._no_correction(name)
        self.plan = plan
        self.formed = None


def part_plan(
    architecture: Architecture, variant: Variant, d_student: int, prefix: str, dense: Dense | None = None
) -> PartPlan:
    """Collect what is projected below `prefix` (a module path ending in a dot, or a module's own path and a dot).

    Where `dense` replaces merges, what it frees is no longer projected, nor corrected.
    """
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
    free: tuple[str, ...] = ()
    if dense is not None:
        inherited = (name.removeprefix(prefix) for name in architecture.inherited if name.startswith(prefix))
        free = dense_names(dense, merges, inherited, stages)
        if dense.form == "replace":
            merges = {name: source for name, source in merges.items() if name not in free}
    corrected = corrected_places(architecture, prefix, stages, variant)
    return PartPlan(
        d_teacher=architecture.hidden_size,
        d_student=d_student,
        merges=merges,
        gains=gains,
        dense=free,
        corrections=tuple(name for name, (_, axis) in merges.items() if corrected.get(name) == axis),
    )


def is_bias(vector: str) -> bool:
    """Whether a trained vector is the bias of a norm, not its gain."""
    return vector.rpartition(".")[2] == "bias"


def _stages_below(architecture: Architecture, prefix: str) -> tuple[Stage, ...]:
    if not prefix.startswith(f"{architecture.layers}."):
        return ()
    return architecture.stages[int(prefix.removeprefix(f"{architecture.layers}.").partition(".")[0])]


def _key(name: str) -> str:
    # ParameterDict refuses dots and empty names
    return name.replace(".", "/") or "whole"


def _name(key: str) -> str:
    return "" if key == "whole" else key.replace("/", ".")
