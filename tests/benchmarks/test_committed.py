"""Committed results: read beside the root's, never taken for a run, small, and free of any machine's paths."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import benchmarks.arena.run as module
from benchmarks.arena.cells import cell_recipe, parse_cell
from benchmarks.arena.command import run_command
from benchmarks.arena.committed import ABSOLUTE, COMMITTED, publish, published_text, strings
from benchmarks.arena.results import FORMAT
from benchmarks.arena.run import Arena, run_cell
from lrc.config import recipe_to_dict
from lrc.errors import DataError
from tests.benchmarks.cell_results import made_up_result

CELL = "gemma3/half/default/250k/seed0"
LARGEST_BYTES = 20_000


def result_of(name: str, *, kl: float = 0.123456789) -> dict[str, Any]:
    """Return a result as a run writes it: a whole recipe with places, thirty layers, nine tasks at five points."""
    texts = {role: Path(f"/home/x/{role}.jsonl") for role in ("train", "development", "held_out", "fresh")}
    run, teacher = Path("/tmp/x/runs") / name, f"/srv/cache/{name}"
    recipe = cell_recipe(parse_cell(name), run=run, teacher=teacher, texts=texts, rates={})
    result = made_up_result(name, [3.0, 2.0, 1.0, 0.5, kl], cloze=0.4)
    score = {"value": 1 / 3, "standard_error": math.pi / 100, "items": 1000}
    for point in result["points"]:
        point |= {"effective_rank": [math.pi * 10] * 30, "teacher_effective_rank": [math.e * 10] * 30}
        point["cloze"] = {"average": score, "tasks": {f"task_{number}": score for number in range(9)}}
    result |= {
        "recipe": recipe_to_dict(recipe),
        "texts": {"origin": "folder texts", "sha256": dict.fromkeys(texts, "0" * 64)},
        "machine": {"device": "cpu", "dtype": "bfloat16", "threads": 1, "products_flops_per_second": 1e11 / 3},
        "versions": dict.fromkeys(("python", "lrc", "torch", "transformers", "accelerate", "safetensors"), "1.2.3"),
        "command": f"python benchmarks/quality.py {name} --data DIR",
    }
    return result


def problems_of(path: Path) -> list[str]:
    """Say what must not stand in a committed result."""
    result = json.loads(path.read_text())
    problems = [f"{key}: {text}" for key, text in strings(result) if text.startswith("/") or ABSOLUTE.search(text)]
    if path.stat().st_size > LARGEST_BYTES:
        problems.append(f"{path.stat().st_size} bytes")
    if result["format"] != FORMAT or f"{result['cell'].replace('/', '.')}.json" != path.name:
        problems.append(f"no cell of the name {path.name}")
    return problems


def test_a_published_cell_is_small_and_names_no_place(tmp_path: Path) -> None:
    result = result_of(CELL)
    (path,) = publish([result], tmp_path / "quality")
    assert problems_of(path) == []
    published = json.loads(path.read_text())
    places = [published["recipe"][key] for key in ("run", "teacher")]
    assert places == [f"runs/{CELL}", "gemma3"]
    assert (published["recipe"]["data"]["train"], published["recipe"]["data"]["held_out"]) == ("train", "development")
    assert published["points"][-1]["held_out"]["kl"] == 0.1234568
    assert f'"effective_rank": [{", ".join(["31.41593"] * 30)}]' in path.read_text()
    for key in ("cell", "texts", "versions", "command", "seed"):
        assert published[key] == result[key]
    assert published["recipe"]["train"] == result["recipe"]["train"] | {"trackers": [], "tags": []}


def test_the_demos_teacher_keeps_its_name() -> None:
    result = result_of("smollm2/half/default/250k/seed0")
    assert json.loads(published_text(result))["recipe"]["teacher"] == "smollm2"
    result["recipe"]["teacher"] = "embedded:smollm2-135m-instruct"
    assert json.loads(published_text(result))["recipe"]["teacher"] == "embedded:smollm2-135m-instruct"


@pytest.mark.parametrize("path", ["/dev/fast", "python /srv/a.py", "--data=/srv", "~/data", "C:\\data", "file:///a"])
def test_a_path_in_an_unknown_place_is_refused(path: str, tmp_path: Path) -> None:
    result = result_of(CELL)
    result["machine"]["device"] = path
    with pytest.raises(DataError, match=r"machine\.device must hold no absolute path"):
        publish([result], tmp_path / "quality")
    assert not (tmp_path / "quality").exists()


def test_what_is_committed_is_small_and_names_no_place(tmp_path: Path) -> None:
    assert (COMMITTED / "README.md").is_file()
    for path in COMMITTED.rglob("*.json"):
        if path.name != "rates.json":
            assert problems_of(path) == [], path.name
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(result_of(CELL)))
    found = problems_of(wrong)
    assert {problem.partition(":")[0] for problem in found} >= {"recipe.run", "recipe.teacher", "recipe.data.train"}
    assert found[-1] == "no cell of the name wrong.json"


def write(folder: Path, *results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        (folder / parse_cell(result["cell"]).file_name).write_text(json.dumps(result))


def test_publishing_takes_the_asked_cells_and_their_teachers_rates(tmp_path: Path) -> None:
    rates = {"gemma3": {"red": {"rate": 2.0}, "default": {"rate": 3.0}}, "smollm2": {"red": {"rate": 4.0}}}
    own = [result_of(name) for name in (CELL, "gemma3/third/red/250k/seed0", "gemma3/half/red@0.001/60k/seed0")]
    write(tmp_path / "results", *own)
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    committed = tmp_path / "committed"
    committed.mkdir()
    (committed / "rates.json").write_text(json.dumps({"gemma3": {"red": {"rate": 1.0}, "dense": {"rate": 5.0}}}))
    folders = ["--root", str(tmp_path), "--committed", str(committed)]
    assert run_command(["--publish", "--only", "half", *folders], help_text="") == 0
    files = {path.name for path in committed.iterdir()}
    assert files == {"gemma3.half.default.250k.seed0.json", "rates.json"}
    kept = json.loads((committed / "rates.json").read_text())
    assert kept == {"gemma3": {"red": {"rate": 2.0}, "default": {"rate": 3.0}, "dense": {"rate": 5.0}}}


def test_a_root_wins_over_what_is_committed_in_tables_and_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"smollm2/half/temperature-{value}/60k/seed0" for value in (1, 2)]
    committed, root = tmp_path / "committed", tmp_path / "root"
    write(committed, *(result_of(name, kl=0.25) for name in names))
    write(root / "results", result_of(names[0], kl=0.75))
    folders = ["--root", str(root), "--committed", str(committed)]
    assert run_command(["--table", "--plot", *folders], help_text="") == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| smollm2")]
    assert [row[5] for row in rows] == ["0.750", "0.250"]
    assert run_command(["sweep", "temperature", "--table", *folders], help_text="") == 0
    shown = capsys.readouterr()
    rows = [line.split(" | ") for line in shown.out.splitlines() if line.startswith("| smollm2")]
    assert [(row[0], row[3]) for row in rows] == [(f"| {names[0]}", "0.375"), (f"| {names[1]}", "0.125")]
    assert "smollm2/half/temperature-4/60k/seed0: not run" in shown.err
    assert run_command(["sweep", "temperature", "--table", "--publish", *folders], help_text="") == 0
    kls = [
        json.loads((committed / parse_cell(name).file_name).read_text())["points"][-1]["held_out"]["kl"]
        for name in names
    ]
    assert kls == [0.75, 0.25]
    (committed / "rates.json").write_text(json.dumps({"tiny": {"red": {"rate": 1.0}, "default": {"rate": 2.0}}}))
    (root / "rates.json").write_text(json.dumps({"tiny": {"red": {"rate": 3.0}}}))
    assert Arena(root=root, committed=committed).rates() == {"tiny": {"red": 3.0, "default": 2.0}}


def test_a_committed_cell_is_really_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = parse_cell("tiny/half/red/2k/seed0")
    write(tmp_path / "committed", result_of(cell.name))

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    arena = Arena(root=tmp_path / "root", committed=tmp_path / "committed", tiny_teacher_steps=3)
    with pytest.raises(KeyboardInterrupt):
        run_cell(arena, cell)
    write(arena.results, result_of(replace(cell, seed=1).name))
    with pytest.raises(KeyboardInterrupt):
        run_cell(arena, cell)
