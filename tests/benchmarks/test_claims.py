"""The claims: ratios of made-up cells that are known, what is missing, what does not compare."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arena.claims import claims_table, mean_curve
from benchmarks.arena.command import run_command
from benchmarks.arena.methods import methods
from tests.benchmarks.cell_results import made_up_result

ON = "smollm2/half"


def falling(name: str, last: float, *, start: float = 3.0) -> dict[str, Any]:
    """Return a cell with the curve (0, start), (1,000, 2), (2,000, 1), (4,000, 0.6), (8,000, last)."""
    return made_up_result(name, [start, 2.0, 1.0, 0.6, last])


def claims_of(results: list[dict[str, Any]]) -> list[list[str]]:
    lines = claims_table(results, on=ON, tokens="250k").splitlines()
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[2:]]


def test_every_claim_is_the_ratio_of_means_over_seeds() -> None:
    results = [falling(f"{ON}/default/250k/seed{seed}", last) for seed, last in enumerate((0.4, 0.5, 0.6))]
    results += [falling(f"{ON}/published/250k/seed{seed}", last) for seed, last in enumerate((1.0, 3.0))]
    results += [falling(f"{ON}/red/250k/seed0", 1.0), falling(f"{ON}/dense/250k/seed0", 0.45)]
    results += [falling(f"{ON}/default/1m/seed0", 0.3, start=1.5), falling(f"{ON}/published/1m/seed0", 0.5)]
    results += [falling(f"{ON}/red/1m/seed0", 0.25), falling(f"{ON}/red@0.1/250k/seed0", 0.01)]
    results[-3]["points"][-1]["held_out"]["top1_agreement"] = 0.2  # published at 1 M; the default's start has 0.5
    rows = claims_of(results)
    assert [row[2:] for row in rows[:10]] == [
        ["≤ 0.35", "0.250", "holds"],  # 0.5 / 2.0
        ["≤ 0.5", "0.600", "fails"],  # 0.3 / 0.5
        ["< 1", "3.000", "fails"],  # 1.5 / 0.5
        ["< 1", "0.400", "holds"],
        ["≤ 0.75", "0.500", "holds"],  # 0.5 / 1.0
        ["≤ 0.75", "1.200", "fails"],  # 0.3 / 0.25
        ["≤ 0.333", "0.250", "holds"],  # 1.0 at 2,000 of 8,000
        ["≤ 0.333", "8.442", "fails"],  # and 65,536 looked at
        ["≤ 0.333", "–", "fails, not reached"],
        ["≤ 0.333", "–", "fails, not reached"],
    ]
    assert rows[0][:2] == ["KL, default / published", f"{ON}/default/250k (3 seeds), {ON}/published/250k (2 seeds)"]
    assert rows[2][1] == f"{ON}/default/1m (1 seed), {ON}/published/1m (1 seed)"
    assert rows[10] == [
        "KL, default / best baseline",
        f"{ON}/default/250k (3 seeds), {ON}/red/250k (1 seed)",
        "< 1",
        "0.500",
        f"holds, {len(methods()) - 4} not run",
    ]
    assert rows[-2][0] == "KL, dense / default"
    assert rows[-2][2:] == ["≤ 0.9", "0.900", "holds"]
    assert rows[-1] == ["KL in nats, default", f"{ON}/default/1m (1 seed)", "≤ 0.8", "0.300", "holds"]


def test_the_default_is_held_against_the_best_form_of_a_method_too() -> None:
    results = [falling(f"{ON}/default/250k/seed0", 0.5), falling(f"{ON}/published/250k/seed0", 1.5)]
    results += [falling(f"{ON}/published-batch-2/250k/seed0", 1.25), falling(f"{ON}/red/250k/seed0", 1.0)]
    results += [falling(f"{ON}/red-token-mean/250k/seed0", 0.625)]
    rows = {row[0]: row[3:] for row in reversed(claims_of(results))}
    assert rows["KL, default / published"] == ["0.333", "holds"]
    assert rows["KL, default / published-batch-2"] == ["0.400", "fails, 2 not run"]
    assert rows["KL, default / red-token-mean"] == ["0.800", "fails, 2 not run"]
    assert rows["tokens to red-token-mean's final KL, default / red-token-mean"][0] == "0.479"  # the lower of the two


def test_a_verdict_tells_of_unlike_seeds_and_dtypes() -> None:
    results = [falling(f"{ON}/default/250k/seed{seed}", 0.1) for seed in range(2)]
    results += [falling(f"{ON}/published/250k/seed0", 1.0)]
    for result, dtype in zip(results, ("float32", "float32", "bfloat16"), strict=True):
        result["machine"] = {"dtype": dtype}
    for seed, result in enumerate(results):
        result["recipe"] = {"run": f"there{seed}", "train": {"seed": seed, "batch_size": 4}}
    assert claims_of(results)[0][-1] == "holds, float32 / bfloat16"
    results[1]["recipe"]["train"]["batch_size"] = 2
    assert claims_of(results)[0][-1] == f"holds, seeds of {ON}/default/250k differ in more, float32 / bfloat16"


def test_the_start_that_counts_is_one_of_few_tokens() -> None:
    large = falling(f"{ON}/default/250k/seed0", 0.4)
    small = falling(f"{ON}/calibration-128000/250k/seed0", 0.5, start=2.0)
    large["calibration_tokens"], small["calibration_tokens"] = 256_000, 128_000
    published = falling(f"{ON}/published/1m/seed0", 4.0)
    assert claims_of([large, published])[2][1:] == [
        f"{ON}/basis-principal-128000/250k (not run), {ON}/published/1m (1 seed)",
        "< 1",
        "–",
        "not run",
    ]
    assert claims_of([large, small, published])[2][3:] == ["0.500", "holds"]
    short = falling(f"{ON}/calibration-128000/60k/seed0", 0.5, start=1.0)
    short["calibration_tokens"] = 128_000
    assert claims_of([large, short, published])[2][3:] == ["0.250", "holds"]  # whatever is trained from it
    large["calibration_tokens"] = 128_000
    assert claims_of([large, small, published])[2][3:] == ["0.750", "holds"]
    tuned = {"student": {"correction": "mlp"}, "start": {"correction_passes": 2}}
    large["recipe"] = small["recipe"] = tuned  # gradient steps
    assert claims_of([large, small, published])[2][3:] == ["–", "not run"]


def test_tokens_that_a_start_went_over_again_count_again() -> None:
    own, red = falling(f"{ON}/default/250k/seed0", 0.4), falling(f"{ON}/red/250k/seed0", 1.0)
    own["calibration_tokens"] = 100
    counted = [row[3] for row in claims_of([own, red]) if row[0] == "the same, calibration counted"]
    assert counted[0] == f"{2_100 / 8_000:.3f}"
    own["recipe"] = {"student": {"correction": "mlp"}, "start": {"correction_passes": 2}}
    counted = [row[3] for row in claims_of([own, red]) if row[0] == "the same, calibration counted"]
    assert counted[0] == f"{2_300 / 8_000:.3f}"


def test_each_teacher_and_width_has_a_line_against_the_baselines() -> None:
    baselines = [name for name in methods() if name not in ("default", "dense")]
    results = [falling(f"gemma3/third/{name}/250k/seed0", 0.5 + place / 10) for place, name in enumerate(baselines)]
    results.append(falling("gemma3/third/default/250k/seed0", 0.5))
    rows = [row for row in claims_of(results) if row[0] == "KL, default / best baseline"]
    assert len(rows) == 6
    assert {tuple(row[3:]) for row in rows if "gemma3/third" not in row[1]} == {("–", "not run")}
    (row,) = (row for row in rows if "gemma3/third" in row[1])
    assert row[1:] == [
        f"gemma3/third/default/250k (1 seed), gemma3/third/{baselines[0]}/250k (1 seed)",
        "< 1",
        "1.000",
        "fails",
    ]


def test_a_baseline_counts_in_the_best_of_its_forms() -> None:
    finals = {"default": 0.5, "red": 0.8, "minitron": 0.9, "minitron-muon": 0.6, "slicegpt-muon": 0.7}
    results = [falling(f"gemma3/third/{name}/250k/seed0", final) for name, final in finals.items()]
    (row,) = (row for row in claims_of(results) if row[0] == "KL, default / best baseline" and "gemma3/third" in row[1])
    assert "gemma3/third/minitron-muon/250k (1 seed)" in row[1]
    assert row[3:] == ["0.833", f"holds, {len(methods()) - 4} not run"]  # of slicegpt a form alone was run


def test_missing_cells_are_not_run_and_other_texts_do_not_compare() -> None:
    assert {row[-1] for row in claims_of([])} == {"not run"}
    assert claims_of([])[0][1] == f"{ON}/default/250k (not run), {ON}/published/250k (not run)"
    results = [falling(f"{ON}/default/250k/seed0", 0.1), falling(f"{ON}/published/250k/seed0", 1.0)]
    assert claims_of(results)[0][-1] == "holds"
    results[0]["texts"] = {"sha256": {"train": "a", "held_out": "b"}}
    assert claims_of(results)[0][-1] == "other texts"
    results[1]["texts"] = {"sha256": {"train": "a", "held_out": "b", "fresh": "c"}}
    assert claims_of(results)[0][-1] == "holds"


def test_a_mean_curve_has_the_points_that_all_seeds_have() -> None:
    long = made_up_result(f"{ON}/red/250k/seed0", [3.0, 2.0, 1.0], tokens=(0, 1_000, 2_000))
    short = made_up_result(f"{ON}/red/250k/seed1", [2.0, 1.0], tokens=(0, 2_000))
    assert mean_curve([long, short]) == [(0, 2.5), (2_000, 1.0)]


def test_claims_are_made_of_the_named_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--root", str(tmp_path), "--committed", str(tmp_path / "none")]
    assert run_command(["--claims", "--on", "tiny/half", "--tokens", "2k", *folders], help_text="") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| claim | cells | target | found | verdict |"
    assert lines[2].startswith("| KL, default / published | tiny/half/default/2k (not run), tiny/half/published/2k")
    assert run_command(["--claims", "--on", "tiny", *folders], help_text="") == 2


def test_claims_below_the_table_are_a_table_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = falling("tiny/half/red/2k/seed0", 0.5)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cell.json").write_text(json.dumps(result))
    folders = ["--root", str(tmp_path), "--committed", str(tmp_path / "none")]
    assert run_command(["--table", "--claims", *folders], help_text="") == 0
    blocks = capsys.readouterr().out.split("\n\n")
    assert [block.splitlines()[0].split()[:2] for block in blocks] == [
        ["|", "cell"],
        ["Teacher", "tiny:"],
        ["|", "claim"],
    ]
