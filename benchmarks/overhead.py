"""What the loop costs beside forward, backward and optimiser, and what a checkpoint costs, at the demo's size.

    python benchmarks/overhead.py            # a few steps of a random teacher of SmolLM2-135M's shape, a few minutes

The times are host times of a run on the CPU, where nothing is asynchronous: reading and collating data, the counts, the
guard's numbers, metrics and progress are the overhead. Prints a table and writes JSON; ends with exit code 1 if the
overhead is above 2 % of a step.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lrc.training.loop as loop
from lrc.config import Recipe
from lrc.data.folder_hash import find_damage
from lrc.models.moments import moment_shapes
from lrc.models.pair_model import PairModel
from lrc.training.checkpoint import read_checkpoint, save_checkpoint
from lrc.training.engine import FullEngine
from lrc.verbs.demo import demo_recipe
from lrc.verbs.train import train

LARGEST_SHARE = 0.02
"""Of a step, for everything but forward, backward and optimiser."""


def make_recipe(root: Path, steps: int) -> Recipe:
    """The demo's recipe with a random teacher of the demo's shape and random tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(root / "teacher")
    recipe = demo_recipe(
        (f"run={root / 'run'}", f"teacher={root / 'teacher'}", "start.method=random", "student.correction=none")
    )
    length = recipe.data.sequence_length
    rows = torch.randint(49_152, (64, length)).tolist()
    (root / "rows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    data = replace(recipe.data, train=str(root / "rows.jsonl"), held_out=None)
    return replace(recipe, data=data, train=replace(recipe.train, max_steps=steps, save_steps=10**6))


class Clock:
    """Seconds spent in functions, by a name for each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def time(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return timed


def measure(steps: int) -> dict[str, Any]:
    """Run `steps` steps and one checkpoint; returns seconds, shares and bytes."""
    clock = Clock()
    marks: list[float] = []
    PairModel.forward = clock.time("forward", PairModel.forward)  # type: ignore[method-assign]
    FullEngine.backward = clock.time("backward", FullEngine.backward)  # type: ignore[method-assign]
    FullEngine.update = clock.time("optimiser", FullEngine.update)  # type: ignore[method-assign]
    read = loop.step_batches

    def reading(*arguments: Any, **options: Any) -> Any:
        marks.append(time.perf_counter())
        if len(marks) == 2:  # the first step warms up
            clock.seconds.clear()
        return read(*arguments, **options)

    def saving(*arguments: Any) -> Path:
        marks.append(time.perf_counter())
        began = time.perf_counter()
        target = save_checkpoint(*arguments)
        clock.seconds["save"] = time.perf_counter() - began
        return target

    loop.step_batches = reading  # type: ignore[assignment]
    loop.save_checkpoint = saving  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        last = train(make_recipe(Path(folder), steps))
        size = sum(path.stat().st_size for path in last.iterdir())
        shapes = {name: value.shape for name, value in loop_shapes(last).items()}
        began = time.perf_counter()
        assert find_damage(last) is None
        saved = read_checkpoint(last, shapes, moment_shapes(shapes, make_recipe(Path(folder), steps).train.optimizer))
        assert all(len(dict(tensors)) for tensors in (saved.weights, saved.moments))
        clock.seconds["read"] = time.perf_counter() - began
    busy = {name: clock.seconds[name] / (steps - 1) for name in ("forward", "backward", "optimiser")}
    step = (marks[steps] - marks[1]) / (steps - 1)
    return {
        "seconds_per_step": step,
        **busy,
        "overhead": step - sum(busy.values()),
        "overhead_share": 1 - sum(busy.values()) / step,
        "checkpoint_bytes": size,
        "checkpoint_save_seconds": clock.seconds["save"],
        "checkpoint_read_seconds": clock.seconds["read"],
    }


def loop_shapes(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="the first one is not counted")
    parser.add_argument("--out", type=Path, default=Path("runs/overhead/overhead.json"))
    arguments = parser.parse_args()
    facts = measure(arguments.steps)
    print("| measure | value |\n|---|---|")
    for name, value in facts.items():
        print(f"| {name} | {value:.2%} |" if name.endswith("share") else f"| {name} | {value:,.4g} |")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(facts, indent=2) + "\n")
    if facts["overhead_share"] > LARGEST_SHARE:
        print(f"the overhead must be at most {LARGEST_SHARE:.0%} of a step", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
