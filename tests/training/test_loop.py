"""The loop's oracles: any split of a batch gives the same update, two ranks equal one, nothing moves on a bad loss."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lrc.config import CHECKPOINTING, Checkpointing, Recipe
from lrc.data.blocks import BatchPlan
from lrc.errors import ConfigError, DataError
from lrc.models.step_weights import StepWeights
from lrc.training import loop
from lrc.training.launch import write_recipe
from lrc.verbs.train import train
from tests.tiny import tiny_recipe, write_rows

STEPS = 2
SEED = 1
SCALE = 1e3
LARGE_GRADIENTS = {
    "objective__lm_weight": 0.5 * SCALE,
    "objective__kl_weight": SCALE,
    "objective__clone_weight": 0.2 * SCALE,
    "train__max_grad_norm": SCALE,
}
"""The objective and its clipping times a thousand: Adam's steps are the same but for its epsilon of 1e-8. Without, one
gradient of 8,272 was -8.93e-9 on one CPU, another on the next: rounding of 1e-10 moves its g / (|g| + 1e-8) by 3e-3 and
the update by 3e-6, though the gradients agree."""


def trained_weights(root: Path, run: str, **train_settings: Any) -> dict[str, Tensor]:
    settings = {f"train__{key}": value for key, value in train_settings.items()}
    recipe = tiny_recipe(
        root,
        run=str(root / run),
        start__method="random",
        **{**LARGE_GRADIENTS, "train__max_steps": STEPS, "train__seed": SEED, **settings},
    )
    return load_file(train(recipe) / "model.safetensors")


@pytest.fixture
def ragged_root(tmp_path: Path) -> Path:
    """Rows of different lengths, so that means of means would differ from the global mean."""
    tiny_recipe(tmp_path)
    write_rows(tmp_path / "train.jsonl", ragged=True)
    return tmp_path


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float = 1e-6) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= limit, name


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_any_split_into_micro_batches_gives_the_update_of_one_batch(
    ragged_root: Path, checkpointing: Checkpointing
) -> None:
    whole = trained_weights(ragged_root, "whole", batch_size=8)
    for batch_size, accumulation in ((1, 8), (2, 4), (4, 2), (8, 1)):
        split = trained_weights(
            ragged_root,
            f"split{batch_size}",
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            activation_checkpointing=checkpointing,
        )
        assert_same(split, whole)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_split_into_micro_batches_gives_the_gradients_of_one_batch(
    ragged_root: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, found = torch.optim.AdamW.step, []

    def recorded(self: torch.optim.AdamW) -> None:
        found.append([parameter.grad.clone() for group in self.param_groups for parameter in group["params"]])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    for batch_size in (8, 4, 2, 1):
        settings = {"batch_size": batch_size, "gradient_accumulation_steps": 8 // batch_size}
        trained_weights(ragged_root, f"run{batch_size}", seed=seed, max_steps=1, **settings)
    whole, *splits = found
    largest = max(float(gradient.abs().max()) for gradient in whole)
    assert len(splits) == 3
    for split in splits:
        assert max(float((one - other).abs().max()) for one, other in zip(split, whole, strict=True)) < 1e-6 * largest


@pytest.mark.parametrize(
    ("checkpointing", "kl_reduction"),
    [("none", "token_mean"), ("none", "published"), ("selective", "token_mean"), ("layer", "published")],
)
def test_two_gloo_ranks_give_the_update_of_one(
    ragged_root: Path, checkpointing: Checkpointing, kl_reduction: str
) -> None:
    changes = {
        "start__method": "random",
        **LARGE_GRADIENTS,
        "objective__kl_reduction": kl_reduction,
        "train__max_steps": STEPS,
        "train__seed": SEED,
    }
    recipe = tiny_recipe(ragged_root, run=str(ragged_root / "one"), train__batch_size=8, **changes)
    one = load_file(train(recipe) / "model.safetensors")
    path = ragged_root / "two.yaml"
    two_recipe = tiny_recipe(
        ragged_root,
        run=str(ragged_root / "two"),
        train__batch_size=2,
        train__gradient_accumulation_steps=2,
        train__activation_checkpointing=checkpointing,
        **changes,
    )
    write_recipe(path, two_recipe)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "lrc", "train", str(path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(load_file(ragged_root / "two" / "train" / f"checkpoint-{STEPS}" / "model.safetensors"), one)


def test_five_steps_lower_the_loss(tmp_path: Path) -> None:
    import json

    train(tiny_recipe(tmp_path, train__max_steps=12, train__learning_rate=3e-3, train__log_steps=1))
    lines = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    held_out = [line["kl"] for line in lines if line["kind"] == "held_out"]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert held_out[-1] < held_out[0]


def test_bfloat16_compute_keeps_float32_masters(tmp_path: Path) -> None:
    last = train(tiny_recipe(tmp_path, train__max_steps=2, train__compute_dtype="bfloat16"))
    tensors = load_file(last / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_the_objective_is_read_when_the_gradients_are_formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the read waits for all that was started: read before, the pull-back would find the device idle."""
    done: list[str] = []
    sum_over_ranks, pull_back = loop.sum_over_ranks, StepWeights.pull_back

    def summed(accelerator: Any, values: list[Any]) -> list[float]:
        if isinstance(values[0], Tensor):
            done.append("objective")
        return sum_over_ranks(accelerator, values)

    def pulled(self: StepWeights) -> None:
        done.append("gradients")
        pull_back(self)

    monkeypatch.setattr(loop, "sum_over_ranks", summed)
    monkeypatch.setattr(StepWeights, "pull_back", pulled)
    settings = {"train__max_steps": STEPS, "train__batch_size": 2, "train__gradient_accumulation_steps": 2}
    train(tiny_recipe(tmp_path, start__method="random", **settings))
    assert done == ["gradients", "objective"] * STEPS


def test_the_pace_leaves_held_out_measures_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def lasting(seconds: float, action: Any) -> Any:
        def run(*arguments: Any) -> Any:
            clock[0] += seconds
            return action(*arguments)

        return run

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(loop, "_optimiser_step", lasting(2.0, loop._optimiser_step))
    monkeypatch.setattr(loop, "_measure_held_out", lasting(100.0, loop._measure_held_out))
    recipe = tiny_recipe(tmp_path, start__method="random", train__log_steps=3, train__evaluate_steps=2)
    train(recipe)
    lines = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    paces = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    assert paces == [4 * 16 / 2.0] * 2  # measured after steps 2, 4 and 6, between the lines of steps 3 and 6


def test_a_tracker_gets_the_numbers(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, train__max_steps=2, train__trackers=["tensorboard"]))
    assert list((tmp_path / "run" / "train").rglob("events.out.tfevents.*"))


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.trackers"):
        train(tiny_recipe(tmp_path, train__trackers=["carrier-pigeon"]))


BAD_STEP = 3


def with_a_bad_row(root: Path, **changes: Any) -> tuple[Recipe, int, str]:
    """A run whose data has a bad row that step 3 is the first to read; returns its line, and the line put right."""
    recipe = tiny_recipe(
        root,
        start__method="random",
        train__max_steps=6,
        train__save_steps=100,
        train__schedule="constant",
        **changes,
    )
    settings, data = recipe.train, root / "train.jsonl"
    sequences = settings.batch_size * settings.gradient_accumulation_steps
    plan = BatchPlan(seed=settings.seed, batch_size=sequences, accumulation=1)
    number = next(block for block in next(plan.indices(BAD_STEP, 40)) if block not in (0, 39))
    lines = data.read_text().splitlines()
    whole = lines[number]
    lines[number] = whole[:-9]
    data.write_text("\n".join(lines) + "\n")
    return recipe, number + 1, whole


def test_a_bad_row_amid_a_large_file_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrc.data.blocks.INDEXED_BYTES", 1)
    recipe, line, whole = with_a_bad_row(tmp_path)
    folder = tmp_path / "run" / "train"
    with pytest.raises(DataError, match=rf"train\.jsonl:{line}: .*JSON.* The 3 steps before it are saved"):
        train(recipe)
    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-3"]
    kept = (folder / "checkpoint-3" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(DataError, match=f"train.jsonl:{line}:"):
        train(recipe, resume="auto")
    assert (folder / "checkpoint-3" / "model.safetensors").stat().st_mtime_ns == kept
    data = tmp_path / "train.jsonl"
    lines = data.read_text().splitlines()
    lines[line - 1] = whole
    data.write_text("\n".join(lines) + "\n")
    found = load_file(train(recipe, resume="auto") / "model.safetensors")
    uninterrupted = replace(recipe, run=str(tmp_path / "uninterrupted"))
    expected = load_file(train(uninterrupted) / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


TWO_RANKS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import lrc.data.blocks
from benchmarks.ranks import start_ranks, wait_for
from lrc.config import load_recipe
from lrc.verbs.train import train

lrc.data.blocks.INDEXED_BYTES = 1
recipe = load_recipe(Path(sys.argv[1]))
print(wait_for(start_ranks(lambda rank: train(recipe), 2, Path(sys.argv[2])), seconds=120))
"""


def test_a_bad_row_on_one_of_two_ranks_ends_both_with_their_steps_saved(tmp_path: Path) -> None:
    recipe, line, _ = with_a_bad_row(tmp_path, train__batch_size=2, train__gradient_accumulation_steps=2)
    write_recipe(tmp_path / "recipe.yaml", replace(recipe, train=replace(recipe.train, gradient_accumulation_steps=1)))
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", TWO_RANKS, str(tmp_path / "recipe.yaml"), str(tmp_path / "output")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout == "[2, 2]\n", done.stderr[-3000:]
    said = [(tmp_path / "output" / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert sum(f"train.jsonl:{line}: " in text for text in said) == 1
    assert sum("Another process has met a row" in text for text in said) == 1
    assert (tmp_path / "run" / "train" / "checkpoint-3" / "model.safetensors").is_file()


def test_a_bad_row_at_a_phases_first_step_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrc.data.blocks.INDEXED_BYTES", 1)
    recipe, line, whole = with_a_bad_row(tmp_path, phases__dense_share=0.5)
    with pytest.raises(DataError, match=rf"train\.jsonl:{line}: .* The 3 steps before it are saved"):
        train(recipe)
    data = tmp_path / "train.jsonl"
    lines = data.read_text().splitlines()
    lines[line - 1] = whole
    data.write_text("\n".join(lines) + "\n")
    found = load_file(train(recipe, resume="auto") / "model.safetensors")
    expected = load_file(train(replace(recipe, run=str(tmp_path / "uninterrupted"))) / "model.safetensors")
    assert any(name.startswith("dense.") for name in found)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
