"""The package's step with compiled layers, and without again; what a timed step does beside the step, and traces."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.speed.ways as module
from benchmarks.speed.one_shape import measure_shape
from benchmarks.speed.rounds import list_ways
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.ways import Bench
from lrc.models.pair_model import PairModel
from tests.benchmarks.tiny_settings import tiny_settings


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


def test_a_timed_step_counts_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(SHAPES["tiny"], dtype=torch.float32, device=torch.device("cpu"), most_batches=2)

    def refuse(batches: Any) -> Any:
        raise AssertionError("on a GPU this would wait for the device")

    monkeypatch.setattr(module, "counts_of", refuse)
    for accumulation in (1, 2):
        assert bench.ours(accumulation).lm > 0
    bench.ours_forward()()


def test_a_compiled_way_is_profiled_without_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "compile_layers", lambda pair, tell: None)
    settings = tiny_settings(with_compiled=True, only="ours, compiled", traces=tmp_path)
    found = measure_shape(SHAPES["tiny"], settings, lambda line: None)
    assert [way["title"] for way in found["ways"]] == ["ours, compiled", "floor"]
    assert found["parts"] == {}
    events = json.loads((tmp_path / "tiny-ours-compiled.json").read_text())["traceEvents"]
    assert any(str(event.get("name")).startswith("aten::") for event in events)
