"""The recipe: one YAML file, one typed tree of frozen dataclasses, a section a verb.

`load_recipe` reads the file, applies `key=value` overrides, checks each field's type and then the whole
(`validate`). Every verb gets the resulting `Recipe`; nothing else in the package parses YAML.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    KeyValidationError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from lrc.data_config import DataConfig, PrepareConfig, SourceConfig, prepare_problems
from lrc.errors import ConfigError, did_you_mean
from lrc.home_folder import expand_home
from lrc.method_config import Method, PhasesConfig, method_problems, not_negative_problems
from lrc.method_config import ObjectiveConfig as ObjectiveConfig
from lrc.overrides import not_a_section, place_of, read_overrides
from lrc.sft_config import SftConfig, sft_problems
from lrc.start_config import StartConfig, start_problems
from lrc.student_config import StudentConfig as StudentConfig
from lrc.teacher_config import TeacherWeightsConfig

ComputeDtype = Literal["auto", "float32", "bfloat16"]
Merge = Literal["auto", "step", "micro_batch"]
OptimizerName = Literal["adamw", "muon"]
HeadKernel = Literal["auto", "own", "liger"]
Checkpointing = Literal["none", "selective", "layer"]
CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "layer")
"""From the most memory to the most recomputation."""
YES = {("train", "activation_checkpointing"): "layer", ("student", "correction"): "outputs"}
"""Names for a yes to what was once a question."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The distillation loop."""

    max_steps: int = MISSING
    """Optimiser steps."""
    batch_size: int = 4
    """Sequences of one micro-batch on one process."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of one optimiser step."""
    optimizer: OptimizerName = "adamw"
    """`adamw`: published. `muon`: orthogonalised steps in units of each projection row's size at the start."""
    learning_rate: float = 1e-4
    """Peak learning rate (published: 1e-4 and 6.7e-5 for adamw); of `muon` the share of its size an entry moves by."""
    rate_shares: dict[str, float] = field(default_factory=dict)
    """Shares of the learning rate by a part of tensors' names (`down_proj`, `gains`), multiplied where several fit."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """After warm-up: linear or cosine decay to 0, warmup-stable-decay, or constant."""
    warmup_ratio: float = 0.005
    """Share of the steps that the learning rate rises over (published: 0.005)."""
    decay_ratio: float = 0.2
    """Share of the steps at the end that `wsd` decays over."""
    beta1: float = 0.9
    """AdamW's first-moment decay (published: 0.9), Muon's momentum."""
    beta2: float = 0.999
    """AdamW's second-moment decay (published: 0.999), also of what Muon leaves to Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay of either optimiser (published: 0)."""
    max_grad_norm: float = 1.0
    """Gradient norm that larger ones are scaled down to (published: 1)."""
    log_steps: int = 10
    """Optimiser steps between two lines of `metrics.jsonl`."""
    save_steps: int = 500
    """Optimiser steps between two checkpoints; the last step always writes one."""
    save_total_limit: int | None = 2
    """Checkpoints kept, the newest, and the best one by held-out KL beside them; None: all."""
    evaluate_steps: int | None = None
    """Optimiser steps between two held-out measures; None: quarters of the run."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """At a loss or gradient that is not finite or explodes: end, or go back to a checkpoint and skip the batch."""
    divergence_factor: float | None = 100.0
    """A loss or gradient norm above this many times the median of the last 64 steps' explodes; None: never."""
    strategy: Literal["auto", "ddp", "fsdp2", "zero1", "zero2", "zero3"] = "auto"
    """How several processes share the work; `auto`: as the launcher's configuration says, else `ddp`."""
    seed: int = 0
    """Seeds the random start and the order of the data."""
    compute_dtype: ComputeDtype = "auto"
    """Dtype of both models' forward; trained tensors stay float32. `auto`: bfloat16 where that measures faster."""
    merge: Merge = "auto"
    """Form the student's weights once a step or micro-batch; `auto`: once where a step has several, FSDP2 left out."""
    activation_checkpointing: Checkpointing = "none"
    """What the backward pass computes again: nothing, what is large or cheap in the student's layers (`selective`), or
    the layers of both models (`layer`); false and true are read as `none` and `layer`."""
    compile: bool = False
    """Run layers through torch.compile; eager, with one line that says why, where that fails."""
    head_kernel: HeadKernel = "own"
    """What computes the head's KL: `liger`, the package's `own`, or Liger where a GPU and it are there (`auto`)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; `auto` takes a GPU if there is one."""
    trackers: tuple[str, ...] = ()
    """Accelerate trackers beside `metrics.jsonl`: tensorboard, wandb, trackio."""
    tags: tuple[str, ...] = ()
    """Labels handed to the trackers."""
    log_data_classes: bool = False
    """Log the LM loss of each data class (published flag `check_data_cls_loss`)."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """The exported student."""

    dtype: Literal["teacher", "float32", "bfloat16", "float16"] = "teacher"
    """Dtype of the exported weights; `teacher`: as the teacher's folder has them."""
    max_shard_bytes: int = 2_000_000_000
    """Largest safetensors file written, in bytes; its tensors are in memory while it is written."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The scorecard."""

    tokens: int = 16_384
    """Held-out tokens scored."""
    sequence_length: int = 512
    """Window of the scored text; windows do not overlap."""
    samples: int = 4
    """Prompts that both models continue greedily."""
    sample_tokens: int = 40
    """New tokens of each continuation."""
    compute_dtype: ComputeDtype = "auto"
    """As `train.compute_dtype`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything one run needs, from teacher to report."""

    run: str = MISSING
    """The run folder; each verb writes its own folder below it."""
    teacher: str = MISSING
    """Folder or hub id of the teacher; `embedded:smollm2-135m-instruct` is the one that `lrc demo` fetches."""
    trust_remote_code: bool = False
    """Let transformers run code that comes with the teacher."""
    method: Method = "clone"
    """`clone`, or a baseline from scratch: `origin`, `only_kd`, `tiny_bert` (docs/methods.md)."""
    teacher_weights: TeacherWeightsConfig = field(default_factory=TeacherWeightsConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    start: StartConfig = field(default_factory=StartConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file, apply overrides and check the result.

    Args:
        path: The YAML file.
        overrides: `section.key=value` strings, later ones win.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown (the nearest name is given), a value has
            the wrong type, a required key is missing, or values contradict each other.
    """
    if not path.is_file():
        raise ConfigError(f"The recipe must be a YAML file, but {path} is not one. Look in configs/recipes.")
    try:
        values = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"The recipe {path} can't be read as YAML: {error}") from error
    except KeyValidationError as error:
        where = f" of {error.full_key}" if error.full_key else ""
        raise ConfigError(f"{path}: each key{where} must be a name, found null. Put the name in quotes.") from error
    if not OmegaConf.is_dict(values):
        raise ConfigError(f"The recipe {path} must hold keys and values, but it is a list.")
    return _resolve([values, read_overrides(overrides, origin=str(path))], origin=str(path))


def recipe_from_dict(values: dict[str, Any], *, origin: str) -> Recipe:
    """Build and check a recipe from nested plain values; `origin` names their source in errors."""
    return _resolve([OmegaConf.create(values)], origin=origin)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested plain values that `recipe_from_dict` takes back (tuples become lists)."""
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(recipe), resolve=True)  # type: ignore[assignment]
    return plain


def recipe_to_yaml(recipe: Recipe) -> str:
    """Write the recipe out; `load_recipe` reads it back to an equal one, names that look like numbers too."""
    text: str = OmegaConf.to_yaml(OmegaConf.create(recipe_to_dict(recipe)))
    return text


def _resolve(layers: list[Any], *, origin: str) -> Recipe:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), *map(_with_names, layers))
        recipe = expand_home(OmegaConf.to_object(merged))
    except ConfigKeyError as error:
        in_source = error.object_type is SourceConfig
        known = [entry.name for entry in dataclasses.fields(SourceConfig)] if in_source else _known_keys(Recipe)
        hint = did_you_mean(str(error.full_key), known)
        raise ConfigError(f"{origin}: unknown key {place_of(error, layers)!r}.{hint}") from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{origin}: the required key {error.full_key!r} is missing.") from error
    except ValidationError as error:
        reason = str(error).splitlines()[0]
        where = place_of(error, layers) or not_a_section(layers, Recipe)
        raise ConfigError(f"{origin}: {where}: {reason}") from error
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigError(f"{origin}: {str(error).splitlines()[0]}") from error
    assert isinstance(recipe, Recipe)
    validate(recipe, origin=origin)
    return recipe


def _with_names(layer: Any) -> Any:
    """Name what a recipe still answers with yes or no."""
    for section, key in YES:
        found = layer[section].get(key) if OmegaConf.is_dict(layer.get(section)) else None
        named = named_answer(section, key, found)
        if named != found:
            layer = OmegaConf.merge(layer, {section: {key: named}})
    return layer


def named_answer(section: str, key: str, value: Any) -> Any:
    """Name what an older recipe answered with yes or no; other values stay."""
    if not isinstance(value, bool) or (section, key) not in YES:
        return value
    return YES[section, key] if value else "none"


def _known_keys(section: Any, prefix: str = "") -> list[str]:
    keys = []
    for entry in dataclasses.fields(section):
        name = f"{prefix}{entry.name}"
        keys.append(name)
        if dataclasses.is_dataclass(entry.type):
            keys += _known_keys(entry.type, f"{name}.")
    return keys


ABOVE_ZERO: dict[str, str] = {
    "student": "hidden_size",
    "start": "tokens",
    "objective": "temperature",
    "data": "sequence_length held_out_tokens",
    "train": "max_steps batch_size gradient_accumulation_steps learning_rate max_grad_norm log_steps save_steps "
    "save_total_limit evaluate_steps divergence_factor",
    "convert": "max_shard_bytes",
    "evaluate": "tokens sequence_length sample_tokens",
}
"""Fields of each section that must be above 0 if they are given."""
NOT_NEGATIVE: dict[str, str] = {
    "start": "outlier_channels correction_passes",
    "objective": "lm_weight kl_weight clone_weight",
    "train": "weight_decay seed",
    "evaluate": "samples",
}


def range_problems(name: str, section: Any) -> list[str]:
    """Check the numbers of the section that a recipe calls `name`; returns a line a problem."""
    problems = []
    for key in ABOVE_ZERO.get(name, "").split():
        value = getattr(section, key)
        if value is not None and not (value > 0 and math.isfinite(value)):
            problems.append(f"{name}.{key} must be a finite number above 0, found {value}")
    for key in NOT_NEGATIVE.get(name, "").split():
        value = getattr(section, key)
        if not (value >= 0 and math.isfinite(value)):
            problems.append(f"{name}.{key} must be a finite number of at least 0, found {value}")
    return problems


def validate(recipe: Recipe, *, origin: str) -> None:
    """Check what the types can't say, and report every problem at once.

    Raises:
        ConfigError: With one line a problem.
    """
    train, objective = recipe.train, recipe.objective
    problems = [problem for name in ABOVE_ZERO for problem in range_problems(name, getattr(recipe, name))]
    shares = {"train.warmup_ratio": train.warmup_ratio, "train.decay_ratio": train.decay_ratio}
    problems += [f"{key} must lie in 0..1, found {value}" for key, value in shares.items() if not 0 <= value <= 1]
    decays = {"train.beta1": train.beta1, "train.beta2": train.beta2}
    problems += [f"{key} must lie in 0..1, 1 left out, found {b}" for key, b in decays.items() if not 0 <= b < 1]
    problems += not_negative_problems("train.rate_shares", train.rate_shares)
    problems += prepare_problems(recipe.prepare)
    problems += sft_problems(recipe.sft)
    problems += method_problems(recipe.method, recipe.phases, objective)
    if train.compile and train.activation_checkpointing == "selective":
        problems.append(
            "train.compile must be false with train.activation_checkpointing = selective: a compiled layer hands no "
            "products out, and chooses by itself what to compute again; take none or layer"
        )
    if train.compile and recipe.teacher_weights.is_held:
        problems.append("train.compile must be false with teacher_weights, whose matrices come while a layer runs")
    if not recipe.run:
        problems.append("run must name a folder, found an empty name")
    if objective.lm_weight == objective.kl_weight == objective.clone_weight == 0:
        problems.append("objective: at least one of lm_weight, kl_weight, clone_weight must be above 0")
    size, correction = recipe.student.hidden_size, recipe.student.correction
    problems += start_problems(recipe.start, recipe.method, hidden_size=size, correction=correction)
    if problems:
        raise ConfigError(f"{origin}: " + "; ".join(problems) + ".")
