"""The arena's numbers after the runs: tokens to reach a KL, seeds put together, the tables, damaged files."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.arena.results import (
    fresh_table,
    groups,
    reach_table,
    read_results,
    sweep_table,
    table,
    teacher_lines,
    tokens_to_reach,
)
from lrc.errors import DataError
from tests.benchmarks.cell_results import made_up_result

CURVE = [(0, 4.0), (1_000, 2.0), (10_000, 1.0), (100_000, 0.5)]


@pytest.mark.parametrize(
    ("level", "tokens"),
    [
        (5.0, 0),
        (4.0, 0),
        (3.0, 500),  # half way from the start, where tokens have no logarithm
        (2.0, 1_000),
        (1.5, 1_000 * math.sqrt(10)),  # half way in the logarithm
        (1.25, 1_000 * 10**0.75),
        (0.5, 100_000),
        (0.49, None),
    ],
)
def test_tokens_to_reach_falls_straight_over_the_logarithm(level: float, tokens: float | None) -> None:
    found = tokens_to_reach(CURVE, level)
    assert found is None if tokens is None else found == pytest.approx(tokens)


def test_a_curve_that_rises_counts_where_it_first_reaches_the_level() -> None:
    assert tokens_to_reach([(0, 3.0), (100, 1.0), (200, 2.0), (400, 0.5)], 1.0) == pytest.approx(100)
    assert tokens_to_reach([(0, 3.0), (100, 3.5), (200, 3.0), (400, 2.0)], 2.5) == pytest.approx(100 * 2 * 2**0.5)
    assert tokens_to_reach([], 1.0) is None


def write(folder: Path, *results: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    for result in results:
        (folder / f"{str(result['cell']).replace('/', '.')}.json").write_text(json.dumps(result))


def test_the_table_is_the_fixtures_numbers_with_the_spread_over_seeds(tmp_path: Path) -> None:
    falls = [[3.0, 2.0, 1.5, 1.2, last] for last in (0.9, 1.0, 1.1)]
    cells = [made_up_result(f"smollm2/half/red/250k/seed{seed}", kls, cloze=0.4) for seed, kls in enumerate(falls)]
    write(tmp_path, *cells, made_up_result("smollm2/half/default/250k/seed0", [1.5, 1.2, 1.0, 0.9, 0.8]))
    lines = table(read_results([tmp_path])).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:] for line in lines[2:]}
    assert list(rows) == ["smollm2/half/default/250k", "smollm2/half/red/250k"]
    assert rows["smollm2/half/red/250k"] == [
        "3",
        "65,536",
        "8,000",
        "3.000 ± 0.000",
        "1.000 ± 0.100",
        "4.000 ± 0.100",
        "50.0 % ± 0.0 %",
        "75.0 % ± 0.0 %",
        "2.000 ± 0.100",
        "0.500 ± 0.050",
        "2.000 ± 0.100",
        "20.0 ± 0.0",
        "40.0 % ± 0.0 %",
        "90 ± 0",
    ]
    single = rows["smollm2/half/default/250k"]
    assert (single[0], single[3], single[4], single[12]) == ("1", "1.500", "0.800", "–")
    assert len(table(read_results([tmp_path]), every_point=True).splitlines()) == 2 + 2 * 5


def test_each_teacher_has_a_line_of_its_own() -> None:
    falls = [3.0, 2.0, 1.0, 0.8, 0.5]
    results = [made_up_result(f"{name}/half/red/250k/seed0", falls) for name in ("smollm2", "gemma3", "smollm2")]
    lines = teacher_lines(results)
    assert lines[0] == "Teacher smollm2: CE 3.000, bits per byte 1.000 held out, 1.000 development."
    assert len(lines) == 2


def test_what_a_cell_does_not_reach_is_said(tmp_path: Path) -> None:
    low, high = [3.0, 2.0, 1.0, 0.8, 0.5], [3.0, 2.5, 2.2, 2.1, 2.0]
    cells = [made_up_result(f"smollm2/half/red/250k/seed{seed}", kls) for seed, kls in enumerate((low, high))]
    lines = reach_table([*cells, made_up_result("smollm2/half/origin/250k/seed0", high)], 1.0).splitlines()
    assert lines[2:] == ["| smollm2/half/red/250k | 2,000 (1 not) |", "| smollm2/half/origin/250k | not reached |"]


def test_sweeps_are_judged_by_the_development_text_and_fresh_text_stands_apart() -> None:
    result = made_up_result("smollm2/half/temperature-4/60k/seed0", [1.5, 1.2, 1.0, 0.9, 0.8])
    row = "| smollm2/half/temperature-4/60k/seed0 | 0.001 | 0.750 | 0.400 | 50.0 % | 1.800 |"
    assert sweep_table([result]).splitlines()[2] == row
    result["texts"] = {"sha256": {"fresh": "0123456789"}}
    assert "1.600" in fresh_table([result])
    assert "1.600" not in table([result])


def test_seeds_that_had_another_fresh_text_are_not_averaged() -> None:
    results = [
        made_up_result(f"smollm2/half/red/250k/seed{seed}", [3.0, 2.0, 1.0, 0.8, last])
        for seed, last in enumerate((0.5, 0.6, 0.7))
    ]
    for result, text in zip(results, ("aaaaaaaa1", "bbbbbbbb2", "aaaaaaaa1"), strict=True):
        result["texts"] = {"sha256": {"fresh": text}}
    rows = [line.split(" | ")[:4] for line in fresh_table(results).splitlines()[2:]]
    assert rows == [
        ["| smollm2/half/red/250k", "aaaaaaaa", "2", "1.200 ± 0.283"],
        ["| smollm2/half/red/250k", "bbbbbbbb", "1", "1.200"],
    ]


def test_seeds_that_read_other_texts_stand_apart() -> None:
    results = [made_up_result(f"smollm2/half/red/250k/seed{seed}", [3.0, 2.0, 1.0, 0.8, 0.5]) for seed in range(3)]
    for result, text in zip(results, ("a", "b", "a"), strict=True):
        result["texts"] = {"sha256": {"train": text, "held_out": "c", "fresh": f"{result['seed']}"}}
    first, second = groups(results).items()
    assert (first[0], len(first[1])) == ("smollm2/half/red/250k", 2)
    assert second[0].startswith("smollm2/half/red/250k, other texts (")
    assert len(second[1]) == 1
    assert [line.split(" | ")[1] for line in table(results).splitlines()[2:]] == ["2", "1"]


def test_other_json_is_passed_over_and_damage_is_named(tmp_path: Path) -> None:
    result = made_up_result("smollm2/half/red/250k/seed0", [3.0, 2.0, 1.0, 0.8, 0.5])
    write(tmp_path / "old", result)
    newer = made_up_result("smollm2/half/red/250k/seed0", [3.0, 2.0, 1.0, 0.8, 0.4])
    write(tmp_path / "new", newer)
    (tmp_path / "new" / "rates.json").write_text("{}")
    assert read_results([tmp_path / "old", tmp_path / "new"]) == [newer]
    (tmp_path / "new" / "cut.json").write_text('{"format"')
    with pytest.raises(DataError, match=r"cut\.json must be the JSON of a cell"):
        read_results([tmp_path / "new"])
