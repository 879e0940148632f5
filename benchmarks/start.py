"""Calibrated against random start on the embedded teacher: held-out KL, agreement and CE at equal tokens.

    python benchmarks/start.py            # both cells (about 20 minutes on two cores), then the table
    python benchmarks/start.py random     # one cell; finished cells are kept under runs/start/

The calibrated cell is the demo's run itself, recipe and all; the random cell is the same recipe with the published
start; `published` also takes the published objective (T 40, raw clone errors), its AdamW and warm-up, and a learning
rate that suits it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from lrc.config import Recipe, load_recipe
from lrc.start_config import StartConfig
from lrc.verbs.demo import demo_recipe
from lrc.verbs.train import train

ROOT = Path("runs/start")
PUBLISHED_RATE = 1e-3
"""The published objective's learning rate at this size; its 1e-4 is for models of billions."""
CELLS = ("calibrated", "random", "published")


def cell_recipe(name: str) -> Recipe:
    """The demo's recipe, changed in what the cell is about and nothing else."""
    recipe = demo_recipe(("train.evaluate_steps=null", f"run={ROOT / name}"))
    if name == "calibrated":
        return recipe
    student = replace(recipe.student, correction="none")  # nothing else fits one
    recipe = replace(recipe, student=student, start=StartConfig(method="random"))
    if name == "random":
        return recipe
    published = load_recipe(Path("configs/recipes/published_1.5b.yaml"))
    train = replace(
        recipe.train,
        optimizer=published.train.optimizer,
        warmup_ratio=published.train.warmup_ratio,
        learning_rate=PUBLISHED_RATE,
        divergence_factor=None,  # raw errors spike to hundreds of times their median
    )
    return replace(recipe, objective=published.objective, train=train)


def run_cell(name: str) -> None:
    train(cell_recipe(name), resume="auto")


def held_out_lines(name: str) -> list[dict[str, float]]:
    path = ROOT / name / "train" / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "held_out"]


def table() -> str:
    rows = [
        "| start, objective | training tokens | KL (T=1), nats | top-1 agreement | CE, nats |",
        "|---|---|---|---|---|",
    ]
    for name in CELLS:
        for line in held_out_lines(name):
            rows.append(
                f"| {name} | {line['tokens']:,} | {line['kl']:.3f} | {line['top1_agreement']:.1%} "
                f"| {line['cross_entropy']:.3f} |"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", choices=[*CELLS, []], help="cells to run; none: calibrated and random")
    arguments = parser.parse_args()
    for name in arguments.cells or ("calibrated", "random"):
        run_cell(name)
    text = table()
    print(text)
    ROOT.mkdir(parents=True, exist_ok=True)
    facts = {name: held_out_lines(name) for name in CELLS}
    (ROOT / "start.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
