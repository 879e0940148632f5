"""Cells that run: kept when finished, gone on with when killed, refused when they were made otherwise."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.arena.run as module
import benchmarks.arena.several as several
from benchmarks.arena.cells import Cell, parse_cell
from benchmarks.arena.command import run_command
from benchmarks.arena.measures import Tasks, merged_student
from benchmarks.arena.methods import methods
from benchmarks.arena.run import Arena, points, run_cell
from lrc.config import load_recipe
from lrc.errors import ConfigError, NumericsError
from lrc.models.pair_model import PairModel
from tests.benchmarks.cell_results import made_up_result

CELL = parse_cell("tiny/half/red/2k/seed0")
ROLES = ("development", "held_out")
TEXTS = {role: Path(f"{role}.jsonl") for role in ("train", "development", "held_out", "fresh")}


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """An arena whose tiny teacher has hardly learnt, with one finished cell."""
    root = tmp_path_factory.mktemp("arena")
    arena = Arena(root=root, committed=root / "committed", tiny_teacher_steps=3)
    run_cell(arena, CELL)
    return arena


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("the cell was run again"))


def test_a_result_is_a_curve_with_all_that_made_it(arena: Arena) -> None:
    result = json.loads((arena.results / CELL.file_name).read_text())
    assert [point["step"] for point in result["points"]] == [0, 1, 2, 4, 8]
    assert [point["tokens"] for point in result["points"]] == [0, 256, 512, 1_024, 2_048]
    for point in result["points"]:
        for role in ROLES:
            assert point[role]["kl"] > 0
            assert 8 * 60 < point[role]["positions"] <= 8 * 63  # of 8 windows; special tokens are left out
            assert point[role]["bits_per_byte"] > point[role]["teacher_bits_per_byte"] / 2
        assert len(point["effective_rank"]) == len(point["teacher_effective_rank"]) == 4
    assert ["fresh" in point for point in result["points"]] == [False] * 4 + [True]
    seconds = [point["seconds"] for point in result["points"]]
    assert seconds == sorted(seconds)
    assert set(result["texts"]["sha256"]) == {"train", "development", "held_out", "fresh"}
    assert result["recipe"]["start"]["method"] == "channel"
    assert {"torch", "transformers", "lrc", "source"} <= set(result["versions"])
    assert result["machine"]["dtype"] in ("bfloat16", "float32")
    assert result["machine"]["products_flops_per_second"] > 0
    assert result["command"] == "python benchmarks/quality.py tiny/half/red/2k/seed0"
    assert not list((arena.root / "runs" / CELL.name / "train").glob("checkpoint-*"))


@pytest.mark.usefixtures("no_training")
def test_a_finished_cell_is_kept(arena: Arena) -> None:
    path = arena.results / CELL.file_name
    before = path.read_bytes()
    assert run_cell(arena, CELL) == json.loads(before)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("no_training")
def test_a_kept_cell_says_that_it_was_not_scored(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    run_cell(replace(arena, tasks=Tasks(data="embedded:benchmarks", limit=None)), CELL)
    assert f"{CELL.name}: kept; it was not scored on tasks" in capsys.readouterr().err


@pytest.mark.usefixtures("no_training")
def test_a_cell_that_is_another_finished_one_takes_its_numbers_and_says_so(arena: Arena) -> None:
    kept = json.loads((arena.results / CELL.file_name).read_text())
    same = replace(CELL, rate=kept["recipe"]["train"]["learning_rate"])
    path = arena.results / same.file_name
    result = run_cell(arena, same)
    try:
        assert json.loads(path.read_text()) == result
        assert (result["cell"], result["same_run_as"]) == (same.name, CELL.name)
        assert result["command"].split()[2] == same.name
        assert result["points"] == kept["points"]
        assert run_cell(arena, same) == result  # kept like any other
    finally:
        path.unlink()
    with pytest.raises(pytest.fail.Exception, match="run again"):  # another seed is another run
        run_cell(arena, replace(same, seed=CELL.seed + 1))


@pytest.mark.usefixtures("no_training")
def test_a_cell_of_other_settings_is_not_taken_for_this_one(arena: Arena) -> None:
    (arena.root / "rates.json").write_text(json.dumps({"tiny": {"red": {"rate": 0.5}}}))
    try:
        with pytest.raises(ConfigError, match=r"train\.learning_rate \(0\.0001 there, 0\.5 now\).*--overwrite"):
            run_cell(arena, CELL)
    finally:
        (arena.root / "rates.json").unlink()


@pytest.mark.usefixtures("no_training")
def test_a_cell_of_another_teacher_is_not_taken_for_this_one(arena: Arena) -> None:
    path = arena.results / CELL.file_name
    text = path.read_text()
    kept = json.loads(text)
    other = replace(arena, tiny_teacher_steps=2)
    with pytest.raises(ConfigError, match=r"teacher_hash \('\w{64}' there, '\w{64}' now\)"):
        run_cell(other, CELL)
    with pytest.raises(pytest.fail.Exception, match="run again"):
        run_cell(other, replace(CELL, rate=kept["recipe"]["train"]["learning_rate"]))
    del kept["teacher_hash"]
    path.write_text(json.dumps(kept))
    try:
        assert run_cell(other, CELL) == kept, "as results that name no weights"
    finally:
        path.write_text(text)


def test_cells_that_begin_alike_share_a_start(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = (arena.root / "starts").iterdir()
    asked: list[Path | None] = []

    def stop(*_: Any, keep_start: Path | None, **__: Any) -> None:
        asked.append(keep_start)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    for name in ("red-relative", "only-kd"):
        with pytest.raises(KeyboardInterrupt):
            run_cell(arena, parse_cell(f"tiny/half/{name}/2k/seed0"))
    assert asked == [made, None]


@pytest.mark.slow
def test_a_cell_from_a_kept_start_is_the_one_that_computed_it(arena: Arena) -> None:
    (made,) = (arena.root / "starts").iterdir()
    whole = json.loads((arena.results / CELL.file_name).read_text())
    other = replace(arena, root=arena.root / "kept")
    (other.root / "starts").mkdir(parents=True)
    (other.root / "starts" / made.name).write_bytes(made.read_bytes())
    result = run_cell(other, CELL)
    assert result["points"][0]["seconds"] == whole["points"][0]["seconds"]
    for ours, theirs in zip(result["points"], whole["points"], strict=True):
        for key in (*ROLES, "effective_rank"):
            assert ours[key] == theirs[key]


@pytest.mark.slow
def test_a_killed_cell_goes_on_and_ends_as_if_nothing_had_been(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(arena, root=arena.root / "killed")
    whole = json.loads((arena.results / CELL.file_name).read_text())
    measure = module._point_measure

    def dying(*arguments: Any) -> Callable[[PairModel, int], dict[str, Any]]:
        observe = measure(*arguments)

        def also_measure(pair: PairModel, step: int) -> dict[str, Any]:
            if step == 4:
                raise KeyboardInterrupt
            return observe(pair, step)

        return also_measure

    with monkeypatch.context() as patch:
        patch.setattr(module, "_point_measure", dying)
        with pytest.raises(KeyboardInterrupt):
            run_cell(other, CELL)
    assert not (other.results / CELL.file_name).exists()
    result = run_cell(other, CELL)
    for ours, theirs in zip(result["points"], whole["points"], strict=True):
        for role in ROLES:
            assert ours[role]["kl"] == pytest.approx(theirs[role]["kl"], rel=1e-5)


def test_a_begun_cell_of_other_settings_is_refused(arena: Arena, tmp_path: Path) -> None:
    other = replace(arena, root=tmp_path)
    run = tmp_path / "runs" / CELL.name / "train"
    run.mkdir(parents=True)
    recipe = (arena.root / "runs" / CELL.name / "train" / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("method: channel", "method: pca"))
    assert load_recipe(run / "recipe.yaml").start.method == "pca"
    with pytest.raises(ConfigError, match=r"start\.method \('pca' there, 'channel' now\)"):
        run_cell(other, CELL)


@pytest.mark.usefixtures("no_training")
def test_a_begun_cell_of_other_texts_is_refused(arena: Arena, tmp_path: Path) -> None:
    other = replace(arena, root=tmp_path)
    run, made = tmp_path / "runs" / CELL.name, arena.root / "runs" / CELL.name
    (run / "train").mkdir(parents=True)
    (run / "train" / "recipe.yaml").write_text((made / "train" / "recipe.yaml").read_text())
    facts = json.loads((made / module.BEGUN_TEXTS).read_text())
    facts["sha256"]["train"] = "another"
    (run / module.BEGUN_TEXTS).write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"texts\.sha256\.train \('another' there"):
        run_cell(other, CELL)


def test_a_named_teacher_is_taken_instead_of_the_arenas(arena: Arena) -> None:
    named = replace(arena, teachers={"gemma3": "somewhere"})
    assert named.teacher(parse_cell("gemma3/half/red/60k/seed0"), named.texts(CELL)) == "somewhere"


def test_seconds_leave_measuring_out_and_count_what_was_done_once() -> None:
    def train(step: int, speed: float) -> dict[str, Any]:
        return {"kind": "train", "step": step, "tokens": 100 * step, "tokens_per_second": speed}

    def held_out(step: int, **more: Any) -> dict[str, Any]:
        return {"kind": "held_out", "step": step, "tokens": 100 * step, "seconds": 1e9, **more}

    measured = {"arena": {"held_out": {"kl": 1.0}, "measure_seconds": 50.0}}
    lines = [held_out(0, **measured), train(1, 100), held_out(1), train(2, 50), held_out(2, **measured)]
    found = points(lines, start_seconds=10.0)
    assert [(point["step"], point["seconds"]) for point in found] == [(0, 10.0), (2, 13.0)]


def run_quick(folder: Path, chosen: list[str]) -> None:
    """Run the quick version of some methods from nothing, and look at its table and plots."""
    command = [sys.executable, str(Path.cwd() / "benchmarks/quality.py"), "--quick", "--tokens", "2k"]
    command += ["--methods", ",".join(chosen), "--teacher-steps", "3", "--root", "out", "--committed", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert rows == sorted(f"| tiny/half/{name}/2k" for name in chosen)
    for name in ("held-out", "development"):
        assert (folder / "out" / "plots" / f"tiny-half-{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_quick_version_runs_from_nothing_to_table_and_plot(tmp_path: Path) -> None:
    run_quick(tmp_path, ["published", "default"])


@pytest.mark.slow
def test_the_quick_version_runs_every_method(tmp_path: Path) -> None:
    run_quick(tmp_path, [name for name in methods() if name not in ("published", "default")])


def test_rates_are_picked_on_the_development_text_of_the_asked_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kls = {3e-5: 2.0, 1e-4: 1.0, 3e-4: 1.4, 1e-3: 1.6}

    def made_up(_: Arena, cell: Cell, **__: Any) -> dict[str, Any]:
        assert cell.tokens == "4k"
        assert cell.rate is not None
        kl = kls[cell.rate]
        result = made_up_result(cell.name, [kl] * 5)
        return {**result, "recipe": {"train": {"learning_rate": cell.rate}}}

    monkeypatch.setattr(several, "run_cell", made_up)
    arguments = ["rates", "red", "--on", "tiny/half", "--tokens", "4k", "--root", str(tmp_path)]
    assert run_command(arguments, help_text="") == 0
    shown = capsys.readouterr()
    assert "| red (picked) | 0.0001 | 0.500 |" in shown.out.splitlines()
    assert "lies at the end of what was tried" not in shown.err
    entry = json.loads((tmp_path / "rates.json").read_text())["tiny"]["red"]
    assert (entry["rate"], entry["on"], entry["tokens"]) == (1e-4, "tiny/half", "4k")
    assert Arena(root=tmp_path, committed=tmp_path / "none").rates() == {"tiny": {"red": 1e-4}}


def test_a_cell_that_went_on_in_another_dtype_says_both(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file)
    sittings = (("bfloat16", True), ("bfloat16", False), ("float32", False), ("float32", False))
    for dtype, is_new in sittings:
        monkeypatch.setattr(module, "choose_dtype", lambda wanted, device, own=dtype: getattr(torch, own))
        module._note_dtype(tmp_path, recipe, is_new=is_new)
    assert json.loads((tmp_path / module.DTYPES).read_text()) == ["bfloat16", "float32"]
    module._note_dtype(tmp_path, recipe, is_new=True)
    assert json.loads((tmp_path / module.DTYPES).read_text()) == ["float32"]


def test_a_best_rate_that_stays_at_the_end_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made_up(_: Arena, cell: Cell, **__: Any) -> dict[str, Any]:
        assert cell.rate is not None
        result = made_up_result(cell.name, [1 / cell.rate] * 5)
        return {**result, "recipe": {"train": {"learning_rate": cell.rate}}}

    monkeypatch.setattr(several, "run_cell", made_up)
    _, best, cells = several.pick_rate(Arena(root=tmp_path), "red", on="tiny/half")
    assert len(cells) == 4 + several.MORE_RATES
    assert f"red: the best learning rate, {best:g}, lies at the end of what was tried" in capsys.readouterr().err


def test_a_best_rate_at_the_end_of_the_grid_asks_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kls = {3e-5: 2.0, 1e-4: 1.8, 3e-4: 1.6, 1e-3: 1.4, 3e-3: 1.2}

    def made_up(_: Arena, cell: Cell, **__: Any) -> dict[str, Any]:
        assert cell.rate is not None
        if cell.rate not in kls:
            raise NumericsError("the loss is not finite")
        result = made_up_result(cell.name, [kls[cell.rate]] * 5)
        return {**result, "recipe": {"train": {"learning_rate": cell.rate}}}

    monkeypatch.setattr(several, "run_cell", made_up)
    grid, best, cells = several.pick_rate(Arena(root=tmp_path), "red", on="tiny/half")
    assert best == 3e-3
    assert list(grid) == list(kls)
    assert len(cells) == 5
    assert "tiny/half/red@0.009/8k/seed0: the loss is not finite" in capsys.readouterr().err
    assert several.next_rate([1e-4, 3e-4, 1e-3], 1e-4) == 3e-5
    assert several.next_rate([1e-4, 3e-4, 1e-3], 3e-4) is None


def test_a_cell_without_numbers_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made_up(_: Arena, cell: Cell, **__: Any) -> dict[str, Any]:
        if cell.method == "kl-reverse":
            raise NumericsError("the loss is not finite")
        return made_up_result(cell.name, [3.0, 2.0, 1.0, 0.8, 0.5])

    monkeypatch.setattr(several, "run_cell", made_up)
    folders = ["--root", str(tmp_path), "--committed", str(tmp_path / "none")]
    assert run_command(["sweep", "kl-direction", "--on", "tiny/half", *folders], help_text="") == 1
    shown = capsys.readouterr()
    assert [row.split(" | ")[0] for row in shown.out.splitlines()[2:]] == [
        f"| tiny/half/kl-{name}/8k/seed0" for name in ("forward", "skewed")
    ]
    assert "error: the loss is not finite" in shown.err


def test_what_there_is_not_ends_with_a_hint_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--root", str(tmp_path), "--committed", str(tmp_path / "none")]
    for arguments, hint in (
        (["sweep", "temprature"], "There is no sweep 'temprature'. Did you mean 'temperature'?"),
        (["sweep", "schedule", "--on", "smollm2"], "--on must be TEACHER/WIDTH"),
        (["sweep", "schedule", "--claims"], "`sweep` prints a table of its own"),
        (["rates", "red", "--plot"], "`rates` prints a table of its own"),
        (["--table"], "No finished cell"),
        (["--publish"], "No finished cell to publish"),
        (["--teacher", "x=y", "--list"], "--teacher must be NAME=FOLDER"),
        ([], "Name a cell"),
    ):
        assert run_command([*arguments, *folders], help_text="") == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert hint in captured.err


def test_the_list_names_cells_methods_and_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--list"], help_text="") == 0
    shown = capsys.readouterr().out
    for name in ("  smollm2/half/default/250k/seed2", "  published-long", "  published-temperature"):
        assert f"\n{name}" in shown


def test_a_merged_student_is_the_pairs(arena: Arena, tmp_path: Path) -> None:
    import torch

    from lrc.verbs.train import train

    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def compare(pair: PairModel, step: int) -> dict[str, Any]:
        ids = torch.arange(24).view(2, 12)
        with torch.no_grad():
            found.append((pair.logits(ids)[0], merged_student(pair)(input_ids=ids).logits))
        return {"seen": step}

    recipe = load_recipe(
        arena.root / "runs" / CELL.name / "train" / "recipe.yaml", (f"run={tmp_path}", "train.max_steps=1")
    )
    train(recipe, also_measure=compare)
    lines = [json.loads(line) for line in (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["seen"] for line in lines if line["kind"] == "held_out"] == [0, 1]
    for factored, merged in found:
        torch.testing.assert_close(factored, merged, rtol=1e-4, atol=1e-4)


def test_the_table_leaves_trials_of_rates_out_until_they_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    for name in ("red", "red@0.01", "start-pca"):
        result = made_up_result(f"smollm2/half/{name}/60k/seed0", [3.0, 2.0, 1.0, 0.8, 0.5])
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(result))

    def shown(*options: str) -> list[str]:
        folders = ["--root", str(tmp_path), "--committed", str(tmp_path / "none")]
        assert run_command(["--table", *folders, *options], help_text="") == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.split(" | ")[0].split("/")[2] for line in lines if line.startswith("| smollm2")]

    assert shown() == ["red", "start-pca"]
    assert shown("--only", "@") == ["red@0.01"]
    assert shown("--only", "pca") == ["start-pca"]
