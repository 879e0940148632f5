"""How much of what training asks of merged weights their projections can follow, and how much of it is no noise.

    python benchmarks/reach.py RUN                     # a run of `lrc train`, at its newest checkpoint
    python benchmarks/reach.py RUN --weights FILE      # at other trained tensors: another checkpoint's, a kept start's

A merged weight `W P` (a reader's) can move only inside the column space of the teacher's `W`, a writer's `P.T W` inside
its row space. A dense phase (docs/methods.md) frees the rest. For each kind of weight the table has, of the objective's
gradient `G` with respect to the merged weight over micro-batches that the run has not seen:

- out of reach: share of `E|G|^2` outside that space;
- signal within, signal out of reach: `|E G|^2` over `E|G|^2` of either part, by the inner products of different
  micro-batches; the rest is noise, which one micro-batch has and the next has not;
- gain out of reach: share of `|E G|^2` outside: of what a small step down the mean gradient wins, what a dense phase
  alone can win.

Prints the table and writes JSON, beside the checkpoints or to `--out`.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrc.config import Recipe, load_recipe
from lrc.data.blocks import BatchPlan, Blocks, open_blocks, step_batches
from lrc.errors import CheckpointError, ConfigError
from lrc.method_config import method_objective
from lrc.models.checkpoint import TRAINED_TENSORS, variant_of
from lrc.models.compute import choose_device
from lrc.models.folder import resolve_folder
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.step_weights import StepWeights
from lrc.models.stored_tensors import StoredTensors, stored_files
from lrc.models.teacher import load_tokenizer
from lrc.training.checkpoint import read_state
from lrc.training.checkpoint_list import checkpoints
from lrc.verbs.exit_code import run_or_exit
from lrc.verbs.progress import progress_lines, say
from lrc.verbs.sources import locate_data, locate_teacher
from lrc.verbs.teacher_weights import load_teacher


def reachable_space(weight: Tensor, axis: int) -> Tensor | None:
    """Return an orthonormal basis of what a merge of this weight can move in.

    Args:
        weight: The teacher's, `[out, in]`.
        axis: The one that is projected: 1 of a reader's, 0 of a writer's.

    Returns:
        `[free, d_T]` float32 (of a float64 weight float64), `free` the axis that stays; None if a merge reaches all.
    """
    stays = weight if axis == 1 else weight.T
    if stays.shape[0] <= stays.shape[1]:
        return None
    basis: Tensor = torch.linalg.qr(stays.to(torch.promote_types(stays.dtype, torch.float32))).Q
    return basis


class GradientSums:
    """One merged weight's gradients over micro-batches: their sum, and the sum of their squares, in and out of reach.

    Args of `add` are gradients with the free axis first, `[free, d_S]`.
    """

    def __init__(self, basis: Tensor | None) -> None:
        self.basis = basis
        self.count = 0
        self.total: Tensor = torch.zeros(())
        self.squares = 0.0
        self.squares_within = 0.0

    def add(self, gradient: Tensor) -> None:
        self.count += 1
        self.total = self.total + gradient
        self.squares += float(gradient.square().sum(dtype=torch.float64))
        self.squares_within += self._within(gradient)

    def _within(self, gradient: Tensor) -> float:
        part = gradient if self.basis is None else self.basis.T @ gradient
        return float(part.square().sum(dtype=torch.float64))

    def facts(self) -> "Reach":
        """Return the means; of `|E G|^2` the estimate from pairs of different micro-batches."""
        pairs = self.count * (self.count - 1)
        whole = (float(self.total.square().sum(dtype=torch.float64)) - self.squares) / pairs
        within = (self._within(self.total) - self.squares_within) / pairs
        size, size_within = self.squares / self.count, self.squares_within / self.count
        return Reach(size=size, size_within=size_within, signal=whole, signal_within=within)


@dataclass(frozen=True)
class Reach:
    """Squared gradients of one merged weight, or of several together."""

    size: float
    """`E|G|^2`."""
    size_within: float
    """Of the part within reach."""
    signal: float
    """`|E G|^2`."""
    signal_within: float

    @property
    def shares(self) -> dict[str, float | None]:
        """The table's columns; None where there is nothing to share."""
        out, signal_out = self.size - self.size_within, self.signal - self.signal_within
        has_rest = out > 1e-9 * self.size
        return {
            "out_of_reach": out / self.size if has_rest else 0.0,
            "signal_within": self.signal_within / self.size_within,
            "signal_out_of_reach": signal_out / out if has_rest else None,
            "gain_out_of_reach": signal_out / self.signal if has_rest and self.signal > 0 else None,
        }


def merged_gradients(
    pair: PairModel,
    blocks: Blocks,
    plan: BatchPlan,
    steps: range,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    document_masking: bool = False,
) -> dict[str, GradientSums]:
    """Add up the gradients of every merged weight of the layers, one micro-batch a step.

    Args:
        pair: In training mode; every weight is a merge.
        blocks: The run's data.
        plan: Of one micro-batch a step.
        steps: Whose data is read.
        progress: Called with batches done and all.
        document_masking: As the run's data section says.
    """
    shares = StepWeights(pair)
    sums: dict[str, GradientSums] = {}
    device = next(pair.parameters()).device
    for done, step in enumerate(steps, 1):
        (batch,) = step_batches(blocks, plan, step, document_masking=document_masking)
        shares.form()
        counts = StepCounts(labels=batch.num_labels, positions=batch.num_positions, sequences=batch.input_ids.shape[0])
        tensors = (batch.input_ids, batch.labels, batch.valid, batch.positions)
        ids, labels, valid, positions = (None if one is None else one.to(device) for one in tensors)
        pair(ids, labels, valid, counts, positions).objective.backward()
        for part in pair.layers:
            for name, leaf in (part.formed or {}).items():
                if leaf.grad is None:
                    continue
                key, (_, axis) = part.prefix + name, part.plan.merges[name]
                if key not in sums:
                    sums[key] = GradientSums(reachable_space(part.teacher.get_parameter(name), axis))
                sums[key].add(leaf.grad if axis == 1 else leaf.grad.T)
        shares.pull_back()
        pair.zero_grad()
        progress(done, len(steps))
    return sums


def by_kind(sums: dict[str, GradientSums]) -> dict[str, Reach]:
    """Add up the layers: `model.layers.3.mlp.up_proj.weight` -> `mlp.up_proj`; then all, as `all`."""
    found: dict[str, list[Reach]] = defaultdict(list)
    for name, kept in sums.items():
        facts = kept.facts()
        parts = name.removesuffix(".weight").split(".")
        last = max((place for place, part in enumerate(parts) if part.isdigit()), default=-1)
        found[".".join(parts[last + 1 :])].append(facts)
        found["all"].append(facts)
    found["all"] = found.pop("all")
    return {kind: Reach(*map(sum, zip(*map(astuple, reaches), strict=True))) for kind, reaches in found.items()}


def table(reaches: dict[str, Reach]) -> str:
    """Return a line a kind of weight."""
    heads = ("out_of_reach", "signal_within", "signal_out_of_reach", "gain_out_of_reach")
    lines = ["| weight | " + " | ".join(head.replace("_", " ") for head in heads) + " |", "| --- |" + " --- |" * 4]
    for kind, reach in reaches.items():
        shares = (reach.shares[head] for head in heads)
        lines.append(f"| `{kind}` | " + " | ".join("-" if one is None else f"{one:.1%}" for one in shares) + " |")
    return "\n".join(lines)


def load_pair(recipe: Recipe, weights: list[Path]) -> tuple[PairModel, Blocks]:
    """Load a run's pair with trained tensors, in training mode, and its data.

    Args:
        recipe: The run's.
        weights: One file, or the pieces of several ranks.

    Raises:
        LrcError: One can't be read, or the tensors are not this pair's.
    """
    device = choose_device(recipe.train.device)
    folder = resolve_folder(locate_teacher(recipe.teacher))
    teacher = load_teacher(recipe, folder, device, say)
    pair = PairModel(
        teacher,
        hidden_size=recipe.student.hidden_size,
        variant=variant_of(recipe.student),
        objective=method_objective(recipe.method, recipe.objective),
    )
    try:
        found, wanted = StoredTensors(weights), pair.stored()
    except CheckpointError as error:
        raise ConfigError(f"{weights[0]} must be a safetensors file. {error}") from error
    if found.shapes != {name: value.shape for name, value in wanted.items()}:
        raise ConfigError(f"{weights[0]} must hold the projections, gains and corrections of this run's student.")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])
    blocks = open_blocks(
        locate_data(recipe.data.train),
        load_tokenizer(folder),
        sequence_length=recipe.data.sequence_length,
        vocab_size=teacher.config.vocab_size,
    )
    return pair.train(), blocks


def first_unseen(recipe: Recipe, checkpoint: Path | None) -> int:
    """Return the number of the first micro-batch that a whole run does not read.

    Args:
        recipe: The run's.
        checkpoint: Its last one, which knows the processes and what was skipped; None: one process is assumed.
    """
    train = recipe.train
    steps, sequences = train.max_steps, train.batch_size * train.gradient_accumulation_steps
    if checkpoint is not None:
        state = read_state(checkpoint)
        steps, sequences = steps + len(state.skipped_batches), state.sequences_per_step
    return -(-steps * sequences // train.batch_size)


def run(arguments: argparse.Namespace) -> None:
    train = Path(arguments.run) / "train"
    if arguments.batches < 2:
        raise ConfigError(f"--batches must be at least 2, found {arguments.batches}.")
    if not (train / "recipe.yaml").is_file():
        raise ConfigError(f"{train} holds no recipe.yaml. Name the folder of a run of `lrc train`.")
    kept = checkpoints(train)
    if arguments.weights is None and not kept:
        raise ConfigError(f"{train} holds no checkpoint. Name trained tensors by --weights.")
    weights = [Path(arguments.weights)] if arguments.weights else stored_files(kept[-1], TRAINED_TENSORS)
    for path in weights:
        if not path.is_file():
            raise ConfigError(f"There is no file {path}.")
    recipe = load_recipe(train / "recipe.yaml")
    pair, blocks = load_pair(recipe, weights)
    plan = BatchPlan(seed=recipe.train.seed, batch_size=recipe.train.batch_size, accumulation=1)
    first = first_unseen(recipe, kept[-1] if kept else None)
    unseen = range(first, first + arguments.batches)
    masking = recipe.data.document_masking
    with progress_lines("gradients", "batches") as progress:
        sums = merged_gradients(pair, blocks, plan, unseen, progress, document_masking=masking)
    reaches = by_kind(sums)
    print(table(reaches))
    facts = {
        "weights": kept[-1].name if arguments.weights is None else weights[0].name,
        "micro_batches": arguments.batches,
        "first_micro_batch": first,
        "tokens_each": plan.batch_size * recipe.data.sequence_length,
        "shares": {kind: reach.shares for kind, reach in reaches.items()},
        "sums": {kind: vars(reach) for kind, reach in reaches.items()},
    }
    Path(arguments.out or train / "reach.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run of `lrc train`")
    parser.add_argument("--weights", help="safetensors file of trained tensors; none: the newest checkpoint's")
    parser.add_argument("--out", help="JSON file; none: RUN/train/reach.json")
    parser.add_argument("--batches", type=int, default=24, help="micro-batches (24)")
    arguments = parser.parse_args()
    run_or_exit(lambda: run(arguments))


if __name__ == "__main__":
    main()
