"""The pair model: teacher and student whole, from token ids to the objective. Training sees nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrc.clone.head import HeadWeights, softcapped
from lrc.clone.sites import Variant
from lrc.config import Checkpointing, ObjectiveConfig
from lrc.method_config import Method
from lrc.models.dense import Dense
from lrc.models.discovery import Architecture, discover
from lrc.models.facts import logit_softcap
from lrc.models.head_reader import head_inputs
from lrc.models.merge_plan import merge_plan
from lrc.models.pair import Cloning, Lockstep, PairEmbedding, PairLayer, PairNorm
from lrc.models.pair_head import PairHead
from lrc.models.part import Pieces, ProjectedPart, part_plan
from lrc.models.student import change_buffers, empty_student, student_config
from lrc.models.terms import measured_points, measured_terms, point_weights
from lrc.models.tiny_bert import ALIGNMENT, HIDDEN, MAP, attention_module, zero_alignment


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """What one optimiser step holds over all micro-batches and ranks; the denominators of its means."""

    labels: int
    """Positions with a next token to predict."""
    positions: int
    """Positions that are not padding."""
    sequences: int


class PairLosses(NamedTuple):
    """One micro-batch's share of the step's objective, and sums to log (no gradient)."""

    objective: Tensor
    """Scalar; the shares of all micro-batches and ranks add up to the step's objective."""
    lm: Tensor
    """`[batch]` cross entropy summed over each sequence's labels, nats."""
    kl: Tensor
    """Scalar, KL in the objective's direction and at its temperature summed over labels, nats, no `T^2`; 0 where the
    method runs no teacher."""
    clone: Tensor
    """`[layers, terms]` clone errors summed over valid positions; 0 where a layer lacks a term."""


class PairModel(nn.Module):
    """A frozen teacher and the student made of it; its parameters that need gradients are the trained tensors."""

    def __init__(
        self,
        teacher: nn.Module,
        *,
        hidden_size: int,
        variant: Variant,
        objective: ObjectiveConfig,
        method: Method = "clone",
        architecture: Architecture | None = None,
    ) -> None:
        """Build the pair; projections and gains are zero until `models/start.py` fills them.

        Args:
            teacher: Stock causal LM in the compute dtype, frozen.
            hidden_size: `d_S`.
            variant: Which readers share a projection.
            objective: Weights and forms of the losses.
            method: What the losses compare; a student from scratch enters its phase afterwards (`enter`).
            architecture: What discovery found in the teacher, if it ran before.

        Raises:
            ConfigError: The architecture or size can't be cloned, or a clone term to leave out is unknown.
        """
        super().__init__()
        config: Any = teacher.config
        self.teacher_config = config
        self.architecture = architecture or discover(config)
        self.variant = variant
        self.objective = objective
        self.method = method
        self.dense: Dense | None = None
        """Which tensors are free weights; set by `enter`."""
        self.student_config = student_config(config, hidden_size, tied=self.architecture.is_student_tied(variant))
        self.softcap = logit_softcap(config)
        self.has_liger_head = False
        """Whether Liger computes the KL where it is trained (`liger_head.takes_liger`)."""
        self.term_names = measured_terms(self.architecture, variant, objective, method)
        self.points = measured_points(self.architecture, variant, self.term_names)
        """The terms of each layer."""
        device = next(teacher.parameters()).device
        self.point_weights = point_weights(objective, len(self.points), self.term_names, device)
        self.lockstep = Lockstep()
        self.alignment: nn.Parameter | None = None
        if method == "tiny_bert":
            teacher.set_attn_implementation("eager")  # type: ignore[operator]  # else no layer hands its maps out
            self.student_config._attn_implementation = "eager"
        if HIDDEN in self.term_names:  # what nothing trains has no place among the trained tensors
            self.alignment = zero_alignment(hidden_size, config.hidden_size, device)
        self.base, self.head = self._assemble(teacher, hidden_size)

    def _assemble(self, teacher: nn.Module, hidden_size: int) -> tuple[nn.Module, PairHead]:
        """Put pairs in place of the stock student's embedding, layers and last norm; make the head's part."""
        architecture = self.architecture
        skeleton = empty_student(self.student_config)
        device = next(teacher.parameters()).device
        change_buffers(skeleton, lambda value: value.to(device))

        def pieces(name: str) -> Pieces:
            return Pieces(
                teacher=teacher.get_submodule(name),
                twin=skeleton.get_submodule(name),
                prefix=f"{name}.",
                plan=part_plan(architecture, self.variant, hidden_size, f"{name}."),
            )

        embedding, head = (name.rpartition(".")[0] for name in (architecture.embedding, architecture.head))
        head_part = PairHead(pieces(head))
        scale = architecture.scales.beside_embedding
        for name, part in (
            (embedding, PairEmbedding(pieces(embedding), self.lockstep, scale=scale)),
            (architecture.norm, PairNorm(pieces(architecture.norm), self.lockstep)),
        ):
            skeleton.set_submodule(name, part)
        for index, stages in enumerate(architecture.stages):
            name = f"{architecture.layers}.{index}"
            cloning = Cloning(
                stages=stages,
                variant=self.variant,
                term_names=self.term_names,
                objective=self.objective,
                map_module=attention_module(architecture, index) if MAP in self.term_names else None,
            )
            skeleton.set_submodule(name, PairLayer(pieces(name), cloning, self.lockstep))
        if self.variant.tie_embedding_projection:
            source = skeleton.get_submodule(embedding)
            assert isinstance(source, ProjectedPart)
            head_part.projections = source.projections
            if architecture.is_tied:
                head_part.dense = source.dense
        return skeleton.get_submodule(architecture.base), head_part

    def train(self, mode: bool = True) -> "PairModel":
        """Switch the pair's mode; the stock model around the parts drops nothing at random (`embedding_dropout`)."""
        super().train(mode)
        self.base.eval()
        return self

    @property
    def layers(self) -> list[PairLayer]:
        """The layers in order."""
        inner = self.architecture.layers.removeprefix(f"{self.architecture.base}.")
        return [layer for layer in self.base.get_submodule(inner).children() if isinstance(layer, PairLayer)]

    def parts(self) -> Iterator[ProjectedPart]:
        """Go through every projected part: embedding, layers, last norm, head."""
        for module in self.base.modules():
            if isinstance(module, ProjectedPart):
                yield module
        yield self.head

    def trained(self) -> dict[str, nn.Parameter]:
        """List all trained tensors by checkpoint name; a projection that two parts share is listed once."""
        found: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for part in self.parts():
            for name, parameter in part.trained().items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[name] = parameter
        return found if self.alignment is None else found | {ALIGNMENT: self.alignment}

    def stored(self) -> dict[str, nn.Parameter]:
        """List what a checkpoint holds: trained tensors, corrections, and projections that clone terms still need."""
        frozen = {name: value for part in self.parts() for name, value in part.frozen().items()}
        return self.trained() | frozen

    def tables(self) -> frozenset[str]:
        """Name the free weights of embedding and head, as a checkpoint does."""
        return frozenset({f"dense.{self.architecture.embedding}", f"dense.{self.architecture.head}"})

    def trained_shapes(self, dense: Dense | None) -> dict[str, torch.Size]:
        """List the shapes of what a phase trains by checkpoint name, before it is entered."""
        plan, size = merge_plan(self.architecture, self.variant, dense), self.student_config.hidden_size
        projection, gain = torch.Size([self.architecture.hidden_size, size]), torch.Size([size])
        shapes = {name: projection if name.startswith("projections.") else gain for name in plan.trained}
        twins = {f"{part.prefix}{name}": value for part in self.parts() for name, value in part.twin.named_parameters()}
        shapes |= {stored: twins[name].shape for name, stored in plan.free.items()}
        return shapes if self.alignment is None else shapes | {ALIGNMENT: self.alignment.shape}

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of both models' forward."""
        return self.head.compute_dtype

    def merged_under(self, name: str) -> Tensor | None:
        """Return the merged weight that a free one of this checkpoint name is added to; None if there is none."""
        for part in self.parts():
            inner = name.removeprefix(f"dense.{part.prefix}")
            if inner != name and inner in part.plan.dense and inner in part.plan.merges:
                return part.merged(inner)
        return None

    def enter(self, dense: Dense | None) -> None:
        """Go over to another phase of training: free tensors start at their merged values, or at zero beside them.

        What both phases train stays the same parameter. None: every merged tensor is a projection's again, at zero if
        it was not one before.
        """
        size = self.student_config.hidden_size
        plans = [part_plan(self.architecture, self.variant, size, part.prefix, dense) for part in self.parts()]
        starts = [part.dense_start(plan) for part, plan in zip(self.parts(), plans, strict=True)]
        for part, plan, start in zip(list(self.parts()), plans, starts, strict=True):
            part.enter(plan, start, part.compared_projections() if isinstance(part, PairLayer) else ())
        self.dense = dense

    def set_activation_checkpointing(self, policy: Checkpointing) -> None:
        """Choose what layers keep for the backward pass, as `train.activation_checkpointing` does."""
        for layer in self.layers:
            layer.checkpointing = policy

    def hidden_states(
        self, input_ids: Tensor, valid: Tensor | None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run both models up to the head.

        Padding must be on the right: causal attention then keeps it from every valid position, without a mask.

        Args:
            input_ids: `[batch, seq]`.
            valid: `[batch, seq]` positions that count in clone terms; None measures none.
            positions: `[batch, seq]` counted anew in each document, which keeps attention inside documents: without
                a mask and a cache, transformers reads the borders off them, for sliding windows too.

        Returns:
            Student `[batch, seq, d_S]`, teacher `[batch, seq, d_T]`, both times the family's constant on logits
            (Granite, Cohere) and with a one at the end if heads have a bias (Phi), so that `heads()` and soft-cap make
            the logits of it; clone sums `[layers, terms]` or None.
        """
        student, teacher, terms = self._streams(input_ids, valid, positions)
        assert teacher is not None
        return student, teacher, terms

    def _streams(
        self, input_ids: Tensor, valid: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What `hidden_states` returns, without the teacher's where it is not to run."""
        lockstep = self.lockstep
        lockstep.valid = valid if self.term_names else None
        lockstep.terms = []
        lockstep.alignment = self.alignment
        student = self.base(input_ids=input_ids, position_ids=positions, use_cache=False).last_hidden_state
        teacher, terms = lockstep.teacher_stream, lockstep.terms
        lockstep.teacher_stream, lockstep.terms = None, []
        inputs = partial(head_inputs, scale=self.architecture.scales.logits, has_bias=self.head.has_bias)
        return inputs(student), None if teacher is None else inputs(teacher), torch.stack(terms) if terms else None

    def heads(self) -> tuple[Tensor, Tensor]:
        """Return both heads' matrices (`PairHead.matrices`); a sharded pair has them inside its head's forward only."""
        return self.head.matrices()

    def logits(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return both models' logits, `[batch, seq, vocabulary]` each: for checks on few tokens, never for training."""
        student, teacher, _ = self.hidden_states(input_ids, None)
        student_head, teacher_head = self.heads()
        return softcapped(student @ student_head.T, self.softcap), softcapped(teacher @ teacher_head.T, self.softcap)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        valid: Tensor,
        counts: StepCounts,
        positions: Tensor | None = None,
    ) -> PairLosses:
        """Compute one micro-batch's share of the objective (docs/method.md section 6).

        Args:
            input_ids: `[batch, seq]`, padded on the right.
            labels: `[batch, seq]`, the token after each position, or -100.
            valid: `[batch, seq]` bool, False for padding.
            counts: The whole step's counts.
            positions: As `hidden_states` takes them.
        """
        objective = self.objective
        self.lockstep.runs_teacher = not (self.training and self.method == "origin")
        student, teacher, terms = self._streams(input_ids, valid if self.training else None, positions)
        self.lockstep.runs_teacher = True
        weights = HeadWeights(
            lm=objective.lm_weight / max(1, counts.labels),
            kl=objective.kl_weight * self._kl_scale(counts),
            temperature=objective.temperature,
            direction=objective.kl_direction,
            skew=objective.kl_skew,
            softcap=self.softcap,
        )
        total, lm, kl = self.head.losses(
            student.flatten(0, 1),
            None if teacher is None else teacher.flatten(0, 1),
            labels.flatten(),
            weights,
            takes_liger=self.has_liger_head and torch.is_grad_enabled(),
        )
        if terms is None:
            terms = torch.zeros(len(self.layers), 0, device=total.device)
        elif objective.clone_weight > 0:
            parts = sum(map(len, self.points)) if objective.clone_reduction == "mean" else 1
            share = objective.clone_weight / max(1, counts.positions) / parts
            weighed = terms if self.point_weights is None else terms * self.point_weights.to(terms.device)
            total = total + share * weighed.sum()
        return PairLosses(total, lm.view_as(labels).sum(-1), kl.sum(), terms.detach())

    def _kl_scale(self, counts: StepCounts) -> float:
        if self.objective.kl_reduction == "published":
            return 1 / max(1, counts.sequences)
        return self.objective.temperature**2 / max(1, counts.labels)
