"""Train recipes on forked ranks, one after the other: `python rank_runs.py JOBS.json`, a script for tests.

A job is `{"name", "recipe": path, "ranks", "resume": checkpoint or null, "environment": {}, "poison": {batch: [factor,
offset]}, "shares": path or null}`; the last rank's objective of such a batch is multiplied and added to, and each rank
writes what it keeps of a held teacher to `path-RANK.json`. Compiled layers are traced and run by torch's own kernels,
and a failure to trace them is one of the job. Prints one line a job, `name codes`.
Torch is imported once; a start through a launcher would cost seconds for each rank.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.ranks import start_ranks, wait_for
from lrc.config import Recipe, load_recipe
from lrc.models.compiled import compile_layers
from lrc.models.pair_model import PairModel
from lrc.verbs import train as verb
from tests.training.note_shares import note_shares
from tests.training.poison import poison


def main(jobs: Path) -> None:
    for job in json.loads(jobs.read_text()):
        recipe = load_recipe(Path(job["recipe"]))

        def work(rank: int, recipe: Recipe = recipe, job: dict[str, Any] = job) -> None:
            if rank == job["ranks"] - 1:
                poison({int(batch): values for batch, values in job.get("poison", {}).items()})
            if job.get("shares"):
                note_shares(Path(f"{job['shares']}-{rank}.json"))
            verb.compile_layers = trace_layers
            verb.train(recipe, resume=job["resume"])

        output = jobs.parent / "output" / job["name"]
        codes = wait_for(start_ranks(work, job["ranks"], output, job.get("environment")), seconds=200)
        print(job["name"], codes, flush=True)
        if any(codes):
            print((output / "rank-0.txt").read_text()[-3000:], flush=True)


def trace_layers(pair: PairModel, _: Any) -> None:
    """Stand in for `compile_layers`: seconds instead of a minute."""

    def refuse(line: str) -> None:
        raise AssertionError(line)

    compile_layers(pair, refuse, backend="aot_eager")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
