"""Cells by name, and the recipe that each stands for: sizes, order of the data, learning rate."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arena.cells import (
    Rates,
    cell_rate,
    cell_recipe,
    parse_cell,
    picked_rate,
    quick_cells,
    rate_cells,
    table_cells,
)
from benchmarks.arena.claims import START_TOKENS
from benchmarks.arena.methods import CALIBRATION_TOKENS, default_sweeps, find_method, methods, sweeps
from lrc.config import Recipe, TrainConfig, recipe_to_dict
from lrc.errors import ConfigError

TEXTS = {role: Path(f"{role}.jsonl") for role in ("train", "development", "held_out", "fresh")}


def recipe_of(name: str, rates: Rates | None = None) -> Recipe:
    return cell_recipe(parse_cell(name), run=Path("run"), teacher="teacher", texts=TEXTS, rates=rates or {})


@pytest.mark.parametrize(
    "name", ["smollm2/half/default/250k/seed0", "gemma3/third/published@0.001/1m/seed2", "tiny/half/red/2k/seed0"]
)
def test_a_name_is_read_and_written_back(name: str) -> None:
    cell = parse_cell(name)
    assert cell.name == name
    assert "/" not in cell.file_name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2/half/default", "TEACHER/WIDTH/METHOD/TOKENS/SEED"),
        ("smollm2/half/default/250000/seed0", "TEACHER/WIDTH/METHOD/TOKENS/SEED"),
        ("smolm2/half/default/250k/seed0", "Did you mean 'smollm2'"),
        ("smollm2/halve/default/250k/seed0", "Did you mean 'half'"),
        ("smollm2/half/publisched/250k/seed0", "Did you mean 'published'"),
        ("smollm2/half/red@fast/250k/seed0", "must be a number, found 'fast'"),
    ],
)
def test_a_wrong_name_says_what_would_be_right(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        parse_cell(name)


def test_steps_are_whole_eighths_near_the_tokens() -> None:
    for tokens in ("250k", "1m", "60k"):
        cell = parse_cell(f"smollm2/half/default/{tokens}/seed0")
        wanted = {"250k": 250_000, "1m": 1_000_000, "60k": 60_000}[tokens]
        assert cell.num_steps % 8 == 0
        assert abs(cell.num_steps * cell.batch_size * 256 - wanted) <= 4 * 1024
        assert cell.measured_steps == {0, *(cell.num_steps * part // 8 for part in (1, 2, 4, 8))}


def test_the_table_has_three_seeds_for_the_headline_and_a_million_tokens_for_three() -> None:
    cells = table_cells()
    assert len({cell.name for cell in cells}) == len(cells)
    headline = [cell for cell in cells if (cell.teacher, cell.width, cell.tokens) == ("smollm2", "half", "250k")]
    assert {(cell.method, cell.seed) for cell in headline} == {(name, seed) for name in methods() for seed in range(3)}
    assert {cell.method for cell in cells if cell.tokens == "1m"} == {"published", "red", "default"}
    sides = {(cell.teacher, cell.width) for cell in cells}
    assert sides == {
        (teacher, width) for teacher in ("smollm2", "gemma3") for width in ("three-quarters", "half", "third")
    }
    assert [cell.method for cell in quick_cells("4k", None)] == list(methods())


def test_methods_of_one_seed_differ_in_nothing_that_decides_the_data() -> None:
    recipes = [
        recipe_of(f"smollm2/half/{method}/250k/seed1") for method in ("published", "red", "red-relative", "default")
    ]
    for recipe in recipes:
        shape = replace(recipe.student, correction="none")  # it changes no shape
        assert (recipe.data, shape) == (recipes[0].data, replace(recipes[0].student, correction="none"))
        assert recipe.train.seed == 1
        assert recipe.train.gradient_accumulation_steps == 1
        for key in ("max_steps", "evaluate_steps"):  # the default's steps are of fewer windows
            windows = [getattr(one.train, key) * one.train.batch_size for one in (recipe, recipes[0])]
            assert windows[0] == windows[1]
    assert [recipe.train.batch_size for recipe in recipes] == [4, 4, 4, 2]
    assert recipe_of("smollm2/half/red/250k/seed0").train.seed == 0


def test_methods_are_what_their_names_say() -> None:
    published, red, default = (recipe_of(f"smollm2/half/{name}/250k/seed0") for name in ("published", "red", "default"))
    assert (published.start.method, published.objective.temperature) == ("random", 40)
    assert (published.objective.clone_error, published.objective.kl_reduction) == ("raw", "published")
    assert (published.train.optimizer, published.train.warmup_ratio) == ("adamw", 0.005)
    assert (red.start.method, red.objective.temperature, red.train.optimizer) == ("channel", 1, "adamw")
    assert (default.start.method, default.objective.clone_error, default.train.optimizer) == (
        "calibrated",
        "relative",
        "muon",
    )


def test_red_is_published_with_another_start_and_temperature() -> None:
    published, red = (recipe_of(f"smollm2/half/{name}@0.001/250k/seed0") for name in ("published", "red"))
    assert red.objective == replace(published.objective, temperature=1.0)
    assert red.start == replace(published.start, method="channel")
    assert (red.train, red.data, red.student) == (published.train, published.data, published.student)


def test_other_forms_of_baselines_change_what_they_say() -> None:
    form, base = (recipe_of(f"smollm2/half/{name}/250k/seed0") for name in ("minitron-muon", "minitron"))
    assert (base.start.channel_score, base.train.optimizer, form.train.optimizer) == ("normalised", "adamw", "muon")
    assert (form.objective, form.start, form.phases) == (base.objective, base.start, base.phases)
    relative, raw = (recipe_of(f"smollm2/half/{name}/250k/seed0") for name in ("tiny-bert-relative", "tiny-bert"))
    assert (raw.objective.clone_error, raw.objective.clone_reduction) == ("raw", "sum")
    assert relative.objective == replace(raw.objective, clone_error="relative", clone_reduction="mean")
    assert relative.train == raw.train


def test_a_cell_takes_its_own_rate_then_the_picked_one_then_the_methods() -> None:
    rates = {"smollm2": {"default": 3e-3}, "gemma3": {"default": 9e-3}}
    for name, rate in {
        "default": 3e-3,
        "default@0.01": 1e-2,
        "temperature-4": 3e-3,
        "muon-0.0005": 5e-4,
        "published": find_method("published").rate,
    }.items():
        cell = parse_cell(f"smollm2/half/{name}/60k/seed0")
        recipe = cell_recipe(cell, run=Path("run"), teacher="teacher", texts=TEXTS, rates=rates)
        assert recipe.train.learning_rate == rate, name
        if name != "muon-0.0005":
            assert cell_rate(cell, rates) == rate
    assert cell_rate(parse_cell("smollm2/half/default/60k/seed0"), {}) == find_method("default").rate
    for name, found in {"default": True, "temperature-4": True, "published": False, "published@0.1": True}.items():
        assert (picked_rate(parse_cell(f"smollm2/half/{name}/60k/seed0"), rates) is not None) == found


def test_rates_are_picked_from_short_cells_of_one_seed() -> None:
    cells = rate_cells("smollm2", "half", "published")
    assert [cell.rate for cell in cells] == list(find_method("published").rates)
    assert {(cell.tokens, cell.seed) for cell in cells} == {("60k", 0)}
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.tokens for cell in rate_cells("smollm2", "half", "default", "30k")} == {"30k"}
    with pytest.raises(ConfigError, match="TEACHER/WIDTH/METHOD/TOKENS/SEED"):
        rate_cells("smollm2", "half", "default", "many")


def test_a_temperature_keeps_its_kl_weight() -> None:
    for base, weight in (("temperature", 1.0), ("published-temperature", 1.28)):
        for temperature in (1, 40):
            objective = recipe_of(f"smollm2/half/{base}-{temperature}/60k/seed0").objective
            assert objective.temperature == temperature
            assert (objective.kl_reduction, objective.kl_weight) == ("token_mean", weight)  # times T^2


def test_a_variant_changes_what_its_sweep_asks_about_and_nothing_else() -> None:
    default = flat_recipe("smollm2/half/default/60k/seed0")
    for name, variants in default_sweeps().items():
        unchanged = 0
        for variant, asked in zip(sweeps()[name], variants.values(), strict=True):
            found = flat_recipe(f"smollm2/half/{variant}/60k/seed0")
            changed = {key for key in default.keys() | found.keys() if default.get(key) != found.get(key)}
            keys = tuple(change.partition("=")[0] for change in asked)
            assert all(key.startswith(keys) for key in changed), (variant, changed)
            unchanged += not changed
        assert unchanged <= 1, name  # the default itself


def flat_recipe(name: str) -> dict[str, Any]:
    """Return a cell's settings, one key a value, without where it runs."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return found

    return flat({key: value for key, value in recipe_to_dict(recipe_of(name)).items() if key != "run"})


def test_the_sweep_of_calibration_ends_at_the_default_and_holds_the_start_that_is_claimed() -> None:
    assert recipe_of("smollm2/half/default/250k/seed0").start.tokens == CALIBRATION_TOKENS[-1]
    assert recipe_of(f"smollm2/half/calibration-{START_TOKENS}/250k/seed0").start.tokens == START_TOKENS


def test_other_batches_take_as_many_windows_in_more_or_fewer_steps() -> None:
    default = recipe_of("smollm2/half/published/60k/seed0").train
    assert default.max_steps is not None
    for batch in (1, 2, 4, 8):
        train = recipe_of(f"smollm2/half/batch-{batch}@0.001/60k/seed0").train
        assert train.batch_size == batch
        assert train.max_steps is not None
        assert train.max_steps % 8 == 0
        assert abs(train.max_steps * batch - default.max_steps * default.batch_size) <= 4 * batch
        assert train.learning_rate == 1e-3
    published = recipe_of("smollm2/half/published-batch-2/60k/seed0")
    assert (published.train.optimizer, published.train.batch_size) == ("adamw", 2)


def test_layers_are_compiled_where_that_takes_less_than_it_saves() -> None:
    assert [recipe_of(f"{name}/half/default/60k/seed0").train.compile for name in ("smollm2", "tiny")] == [True, False]


def test_the_schedule_is_as_long_as_the_run() -> None:
    settings: TrainConfig = recipe_of("smollm2/half/default/250k/seed0").train
    assert settings.max_steps == 8 * settings.evaluate_steps  # type: ignore[operator]
    assert settings.max_steps // 8 >= settings.save_steps
