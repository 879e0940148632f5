"""The pair model: teacher and student whole, from token ids to the objective. Training sees nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrc.clone.head import HeadWeights, head_losses, softcapped
from lrc.clone.sites import Variant, layer_terms
from lrc.config import ObjectiveConfig
from lrc.errors import ConfigError
from lrc.models.discovery import Architecture, discover
from lrc.models.facts import logit_softcap
from lrc.models.pair import Cloning, Lockstep, PairEmbedding, PairHead, PairLayer, PairNorm
from lrc.models.part import Pieces, ProjectedPart, part_plan
from lrc.models.student import empty_student, student_config


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
    """Scalar, KL(teacher || student) at the objective's temperature summed over labels, nats, no `T^2`."""
    clone: Tensor
    """`[layers, terms]` clone errors summed over valid positions."""


class PairModel(nn.Module):
    """A frozen teacher and the student made of it; its parameters that need gradients are the trained tensors."""

    def __init__(
        self,
        teacher: nn.Module,
        *,
        hidden_size: int,
        variant: Variant,
        objective: ObjectiveConfig,
        architecture: Architecture | None = None,
    ) -> None:
        """Build the pair; projections and gains are zero until `models/start.py` fills them.

        Args:
            teacher: Stock causal LM in the compute dtype, frozen.
            hidden_size: `d_S`.
            variant: Which readers share a projection.
            objective: Weights and forms of the losses.
            architecture: What discovery found in the teacher, if it ran before.

        Raises:
            ConfigError: The architecture or size can't be cloned, or a clone term to leave out is unknown.
        """
        super().__init__()
        config: Any = teacher.config
        self.architecture = architecture or discover(config)
        self.variant = variant
        self.objective = objective
        tied = self.architecture.is_tied and variant.tie_embedding_projection
        self.student_config = student_config(config, hidden_size, tied=tied)
        self.softcap = logit_softcap(config)
        self.term_names = measured_terms(self.architecture, variant, objective)
        self.lockstep = Lockstep()
        self.base, self.head = self._assemble(teacher, hidden_size)
        self.has_head_bias = "bias" in dict(self.head.teacher.named_parameters())

    def _assemble(self, teacher: nn.Module, hidden_size: int) -> tuple[nn.Module, PairHead]:
        """Put pairs in place of the stock student's embedding, layers and last norm; make the head's part."""
        architecture = self.architecture
        skeleton = empty_student(self.student_config)
        device = next(teacher.parameters()).device

        for module in skeleton.modules():
            module._buffers.update(
                {key: value.to(device) for key, value in module._buffers.items() if value is not None}
            )

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
            cloning = Cloning(stages=stages, variant=self.variant, term_names=self.term_names, objective=self.objective)
            skeleton.set_submodule(name, PairLayer(pieces(name), cloning, self.lockstep))
        if self.variant.tie_embedding_projection:
            source = skeleton.get_submodule(embedding)
            assert isinstance(source, ProjectedPart)
            head_part.projections = source.projections
        return skeleton.get_submodule(architecture.base), head_part

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
        return found

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute layers in the backward pass, or keep their activations."""
        for layer in self.layers:
            layer.checkpointing = enabled

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
        self.lockstep.valid = valid if self.term_names else None
        self.lockstep.terms = []
        student = self.base(input_ids=input_ids, position_ids=positions, use_cache=False).last_hidden_state
        teacher, terms = self.lockstep.teacher_stream, self.lockstep.terms
        self.lockstep.teacher_stream, self.lockstep.terms = None, []
        assert teacher is not None
        if self.has_head_bias:
            student, teacher = with_one(student), with_one(teacher)
        if (scale := self.architecture.scales.logits) != 1:
            student, teacher = student * scale, teacher * scale
        return student, teacher, torch.stack(terms) if terms else None

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
        student, teacher, terms = self.hidden_states(input_ids, valid if self.training else None, positions)
        weights = HeadWeights(
            lm=objective.lm_weight / max(1, counts.labels),
            kl=objective.kl_weight * self._kl_scale(counts),
            temperature=objective.temperature,
            softcap=self.softcap,
        )

        def losses(student_head: Tensor, teacher_head: Tensor, student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rows = teacher.flatten(0, 1)
            return head_losses(student, rows, student_head, teacher_head, labels.flatten(), weights=weights)

        total, lm, kl = self.head(losses, student.flatten(0, 1))
        if terms is None:
            terms = torch.zeros(len(self.layers), 0, device=total.device)
        elif objective.clone_weight > 0:
            share = objective.clone_weight / max(1, counts.positions)
            if objective.clone_reduction == "mean":
                share /= terms.numel()
            total = total + share * terms.sum()
        return PairLosses(total, lm.view_as(labels).sum(-1), kl.sum(), terms.detach())

    def _kl_scale(self, counts: StepCounts) -> float:
        if self.objective.kl_reduction == "published":
            return 1 / max(1, counts.sequences)
        return self.objective.temperature**2 / max(1, counts.labels)


def with_one(hidden: Tensor) -> Tensor:
    """Put a one behind hidden states, for a head matrix whose last column is a bias."""
    return torch.cat((hidden, torch.ones_like(hidden[..., :1])), -1)


def measured_terms(architecture: Architecture, variant: Variant, objective: ObjectiveConfig) -> tuple[str, ...]:
    """List the clone terms that are measured, the columns of the clone sums.

    Raises:
        ConfigError: `objective.without` names a term that the student lacks.
    """
    names = dict.fromkeys(term for stages in architecture.stages for term in layer_terms(stages, variant))
    unknown = set(objective.without) - set(names) - {"all"}
    if unknown:
        raise ConfigError(
            f"objective.without names clone terms that this student lacks: {', '.join(sorted(unknown))}. "
            f"It has {', '.join(names)}."
        )
    return () if "all" in objective.without else tuple(name for name in names if name not in objective.without)
