"""The phases of a run: when merged weights become free, at what learning rate, and under which strategies.

The loop asks before each step; the engine goes over (`lrc/training/engine.py:FullEngine.enter`).
"""

from dataclasses import dataclass

from lrc.config import Recipe
from lrc.errors import ConfigError
from lrc.method_config import first_dense_step
from lrc.models.checkpoint import variant_of
from lrc.models.dense import FROM_SCRATCH, Dense
from lrc.models.discovery import Architecture
from lrc.models.merge_plan import merge_plan
from lrc.models.tiny_bert import ALIGNMENT
from lrc.training.optimizer import check_rate_shares
from lrc.training.strategy import ZERO_STAGES


@dataclass(frozen=True, kw_only=True)
class Phases:
    """The phases of one run, a pure function of its recipe."""

    dense: Dense | None
    """What is free in the end; None: a run of projections from its first step to its last."""
    first_step: int
    """The step, counted from 0, that it is free from."""
    rate_share: float
    """Learning rate of free weights as a share of the run's."""

    def at(self, step: int, current: Dense | None) -> Dense | None:
        """Return what is free in step `step`; a run does not go back by itself."""
        return self.dense if step >= self.first_step else current


def plan_phases(recipe: Recipe) -> Phases:
    """Read the phases off a recipe; a student from scratch is free from the first step."""
    train, phases = recipe.train, recipe.phases
    if recipe.method != "clone":
        return Phases(dense=FROM_SCRATCH, first_step=0, rate_share=1.0)
    first = first_dense_step(phases, train.max_steps)
    if first is None:
        return Phases(dense=None, first_step=train.max_steps, rate_share=1.0)
    rate = phases.dense_learning_rate or train.learning_rate
    dense = Dense(tensors=phases.dense_tensors, form=phases.dense_form)
    return Phases(dense=dense, first_step=first, rate_share=rate / train.learning_rate)


def check_phase(current: Dense | None, phases: Phases, step: int, *, origin: str) -> None:
    """Check that a run can go on from a checkpoint of step `step` in the phase `current`.

    Raises:
        ConfigError: The recipe wants another phase there.
    """
    if current is not None and (current != phases.dense or step < phases.first_step):
        wanted = "projections" if phases.dense is None or step < phases.first_step else _words(phases.dense)
        raise ConfigError(
            f"{origin} holds {_words(current)}, but the recipe asks for {wanted} at step {step}. Free weights can't be "
            "made projections again: leave method, phases and train.max_steps as they were, or go on from an earlier "
            "checkpoint."
        )
    if current is None and phases.dense == FROM_SCRATCH:
        raise ConfigError(f"{origin} holds projections, but the recipe's method trains a student from scratch.")


def check_strategy(recipe: Recipe, strategy: str) -> None:
    """Check that a strategy can train what the recipe asks for.

    Raises:
        ConfigError: It can't.
    """
    share = recipe.phases.dense_share
    problem = None
    if strategy in ("fsdp2", *ZERO_STAGES) and 0 < share < 1:
        problem = f"phases.dense_share = {share} changes what is trained on the way, which shards can't follow"
    elif strategy in ZERO_STAGES and recipe.student.correction != "none":
        problem = (
            f"student.correction = {recipe.student.correction} keeps fixed tensors, which DeepSpeed does not hand out"
        )
    elif strategy in ZERO_STAGES and share:
        problem = f"phases.dense_share = {share} keeps frozen projections, which DeepSpeed does not hand out"
    elif strategy in ("fsdp2", *ZERO_STAGES) and recipe.method == "tiny_bert":
        problem = "method = tiny_bert has one alignment for all layers, which no shard of a layer holds"
    elif strategy in ZERO_STAGES and any(share != 1 for share in recipe.train.rate_shares.values()):
        problem = "train.rate_shares needs several groups of tensors, and DeepSpeed is given one"
    elif strategy in ZERO_STAGES and recipe.train.compile:
        problem = "train.compile = true has not been held against DeepSpeed's hooks, which take gradients away"
    if problem is not None:
        raise ConfigError(f"The strategy {strategy} can't train this recipe: {problem}. Take train.strategy=ddp.")


def check_rates(recipe: Recipe, architecture: Architecture) -> None:
    """Check that `train.rate_shares` names parts of what is trained in one of the phases.

    Raises:
        ConfigError: It does not.
    """
    phases, variant = plan_phases(recipe), variant_of(recipe.student)
    names = {ALIGNMENT} if recipe.method == "tiny_bert" else set()
    if phases.first_step > 0:
        names |= merge_plan(architecture, variant).trained
    if phases.dense is not None:
        names |= merge_plan(architecture, variant, phases.dense).trained
    check_rate_shares(recipe.train.rate_shares, names)


def _words(dense: Dense) -> str:
    if dense == FROM_SCRATCH:
        return "a student from scratch"
    return f"free weights ({dense.tensors}, {dense.form})"
