"""Train recipes on forked ranks, one after the other: `python rank_runs.py JOBS.json`, a script for tests.

A job is `{"name", "recipe": path, "ranks", "resume": checkpoint or null, "environment": {}, "poison": {batch: [factor,
offset]}}`; the last rank's objective of such a batch is multiplied and added to. Prints one line a job, `name codes`.
Torch is imported once; a start through a launcher would cost seconds for each rank.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.ranks import start_ranks, wait_for
from lrc.config import Recipe, load_recipe
from lrc.models import pair_model
from lrc.training import loop
from lrc.verbs.train import train


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text()):
        recipe = load_recipe(Path(job["recipe"]))

        def work(rank: int, recipe: Recipe = recipe, job: dict[str, Any] = job) -> None:
            if rank == job["ranks"] - 1:
                poison({int(batch): values for batch, values in job.get("poison", {}).items()})
            train(recipe, resume=job["resume"])

        output = jobs.parent / "output" / job["name"]
        codes = wait_for(start_ranks(work, job["ranks"], output, job.get("environment")), seconds=200)
        print(job["name"], codes, flush=True)
        if any(codes):
            print((output / "rank-0.txt").read_text()[-3000:], flush=True)


def poison(batches: dict[int, list[float]]) -> None:
    """Multiply and add to the objective of some batches in this process."""
    read, losses, current = loop.step_batches, pair_model.head_losses, [0]

    def reading(blocks: Any, plan: Any, batch: int, **options: Any) -> Any:
        current[0] = batch
        return read(blocks, plan, batch, **options)

    def poisoned(*arguments: Any, **options: Any) -> Any:
        total, lm, kl = losses(*arguments, **options)
        factor, offset = batches.get(current[0], (1.0, 0.0))
        return total * factor + offset, lm, kl

    loop.step_batches = reading  # type: ignore[assignment]
    pair_model.head_losses = poisoned  # type: ignore[assignment]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
