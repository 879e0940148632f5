"""What is trained and on what: the recipe's `method`, its phases and its objective (docs/methods.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Method = Literal["clone", "origin", "only_kd", "tiny_bert"]
"""`clone`: a student of projections. The others train a stock student of the same shape from scratch."""
KlDirection = Literal["forward", "reverse", "skewed"]
DenseTensors = Literal["mlp", "all"]
DenseForm = Literal["replace", "complement"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """total = lm_weight * LM + kl_weight * KL + clone_weight * sum of the clone terms (docs/method.md, section 6)."""

    temperature: float = 1.0
    """Softmax temperature `T` of the KL term."""
    kl_reduction: Literal["token_mean", "published"] = "token_mean"
    """`token_mean`: mean over positions times `T^2`. `published`: sum over positions / sequences, no `T^2`."""
    kl_direction: KlDirection = "forward"
    """`forward`: KL(teacher || student), published. `reverse`: KL(student || teacher). `skewed`: KL(teacher || mixture
    of both)."""
    kl_skew: float = 0.1
    """Share of the teacher in the mixture of `skewed`."""
    lm_weight: float = 0.0
    """Weight of the next-token cross entropy (published: 1)."""
    kl_weight: float = 1.0
    """Weight of KL(teacher || student) (published: 1)."""
    clone_weight: float = 0.2
    """Weight `alpha` of the summed clone terms (published: 0.2 to 0.5, on raw errors)."""
    clone_error: Literal["relative", "raw"] = "relative"
    """`relative`: squared error over the teacher's mean square, per position. `raw`: mean squared error, published."""
    clone_reduction: Literal["mean", "sum"] = "mean"
    """Over layers and clone points: `mean`, or `sum` as published."""
    clone_term_weights: dict[str, float] = field(default_factory=dict)
    """What single clone terms count, by name, for example `{attn-out: 0.5}`; 1 where a term is not named."""
    clone_depth_slope: float = 0.0
    """What clone terms count by depth: from `1 - slope` in the first layer evenly to `1 + slope` in the last."""
    attention_output_space: Literal["student", "teacher"] = "student"
    """Where attention outputs are compared: `student` (paper) or `teacher`, before the projection (published code)."""
    without: tuple[str, ...] = ()
    """Clone terms left out, for example `attn-q` or `mlp-out`; `all` leaves out every one."""


@dataclass(frozen=True, kw_only=True)
class PhasesConfig:
    """The dense phase at the end of a `clone` run: merged weights are trained as they are (docs/methods.md)."""

    dense_share: float = 0.0
    """Share of the run's steps, at its end, that belong to the dense phase; 1: dense from the first step."""
    dense_tensors: DenseTensors = "mlp"
    """Merged weights that become free: those of the MLPs, or `all`."""
    dense_form: DenseForm = "replace"
    """`replace`: a free weight starts as the merged one. `complement`: merged plus a free update from zero."""
    dense_learning_rate: float | None = None
    """Peak learning rate of the free weights, on the run's schedule; None: `train.learning_rate`."""


def first_dense_step(phases: PhasesConfig, max_steps: int) -> int | None:
    """Return the step, counted from 0, that the dense phase begins with; None without one."""
    if phases.dense_share == 0:
        return None
    return max_steps - max(1, round(phases.dense_share * max_steps))


def method_objective(method: Method, objective: ObjectiveConfig) -> ObjectiveConfig:
    """Return what a method makes of the recipe's objective; `clone` and `tiny_bert` take it as it is.

    `only_kd` has no clone terms; `origin` is the cross entropy alone.
    """
    no_clone_terms: dict[str, Any] = {
        "clone_weight": 0.0,
        "without": ("all",),
        "clone_term_weights": {},
        "clone_depth_slope": 0.0,
    }
    if method == "only_kd":
        return replace(objective, **no_clone_terms)
    if method == "origin":
        return replace(objective, lm_weight=1.0, kl_weight=0.0, **no_clone_terms)
    return objective


def not_negative_problems(where: str, values: Mapping[str, float]) -> list[str]:
    """Check numbers that a recipe gives by name; returns a line a problem."""
    message = "must be a finite number of at least 0, found"
    return [f"{where}.{key} {message} {value}" for key, value in values.items() if not 0 <= value < math.inf]


def method_problems(method: Method, phases: PhasesConfig, objective: ObjectiveConfig) -> list[str]:
    """Check what the types can't say; returns a line a problem."""
    problems = []
    if not 0 <= phases.dense_share <= 1:
        problems.append(f"phases.dense_share must lie in 0..1, found {phases.dense_share}")
    rate = phases.dense_learning_rate
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        problems.append(f"phases.dense_learning_rate must be a finite number above 0, found {rate}")
    if not 0 <= objective.kl_skew < 1:
        problems.append(f"objective.kl_skew must lie in 0..1, 1 left out, found {objective.kl_skew}")
    if not -1 <= objective.clone_depth_slope <= 1:
        problems.append(f"objective.clone_depth_slope must lie in -1..1, found {objective.clone_depth_slope}")
    problems += not_negative_problems("objective.clone_term_weights", objective.clone_term_weights)
    if method != "clone" and phases.dense_share:
        problems.append(
            f"phases.dense_share must be 0 with method = {method}, whose student is dense from the start, found "
            f"{phases.dense_share}"
        )
    if method == "only_kd" and objective.lm_weight == objective.kl_weight == 0:
        problems.append("method = only_kd needs objective.kl_weight or objective.lm_weight above 0")
    has_clone_terms = method in ("clone", "tiny_bert") and objective.clone_weight > 0
    if has_clone_terms and "all" in objective.without and objective.lm_weight == objective.kl_weight == 0:
        problems.append(
            "objective.without must not hold all with lm_weight = kl_weight = 0, which leaves nothing to train on: "
            "take all out of it, or set lm_weight or kl_weight above 0"
        )
    return problems
