"""The package's step with compiled layers, and without again."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import benchmarks.speed.ways as module
from benchmarks.speed.rounds import list_ways
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.ways import Bench
from lrc.models.pair_model import PairModel


def test_layers_run_compiled_in_the_ways_that_say_so_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: Counter[str] = Counter()

    def compile_layers(pair: PairModel, tell: Callable[[str], None]) -> None:
        runs["compiled pairs"] += 1
        for layer in pair.layers:
            layer.run = lambda *arguments, run=layer.run: (runs.update(["compiled"]), run(*arguments))[1]

    monkeypatch.setattr(module, "compile_layers", compile_layers)
    bench = Bench(SHAPES["tiny"], dtype=torch.float32, device=torch.device("cpu"), most_batches=1)
    ways: dict[str, Any] = {way.title: way for way in list_ways(bench, [1], with_plain=False, with_compiled=True)}
    assert {"ours", "ours, compiled", "ours, layer checkpointing, compiled", "floor"} < set(ways)
    found = []
    for title in ("ours", "ours, compiled", "ours", "ours, compiled"):
        before = runs["compiled"]
        ways[title].pieces["step"]()
        found.append(runs["compiled"] - before)
    assert found == [0, SHAPES["tiny"].layers, 0, SHAPES["tiny"].layers]
    assert runs["compiled pairs"] == 1
