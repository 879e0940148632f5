"""What tells two runs of the arena apart, and what does not."""

from pathlib import Path

import pytest

from benchmarks.arena.cells import cell_recipe, parse_cell
from benchmarks.arena.identity import check_same, differing, identity, settings_of
from lrc.config import recipe_to_dict
from lrc.errors import ConfigError

TEXTS = {role: Path(f"{role}.jsonl") for role in ("train", "development", "held_out", "fresh")}


def settings(method: str, *, run: str = "here", **start: object) -> dict[str, object]:
    recipe = recipe_to_dict(
        cell_recipe(parse_cell(f"smollm2/half/{method}/250k/seed0"), run=Path(run), teacher="t", texts=TEXTS, rates={})
    )
    return settings_of({**recipe, "start": {**recipe["start"], **start}})


@pytest.mark.parametrize(
    ("method", "reads_them"),
    [
        ("published", False),
        ("red", False),
        ("only-kd", False),
        ("minitron", True),
        ("default", True),
        ("slicegpt", True),
    ],
)
def test_calibration_tokens_count_where_a_start_reads_them(method: str, reads_them: bool) -> None:
    found = differing(settings(method), settings(method, tokens=4_096))
    assert found == (["start.tokens"] if reads_them else [])


@pytest.mark.parametrize(("method", "reads_it"), [("default", True), ("only-kd", False), ("slicegpt", False)])
def test_a_start_made_before_the_basis_could_be_chosen_had_the_principal_one(method: str, reads_it: bool) -> None:
    cell = parse_cell(f"smollm2/half/{method}/250k/seed0")
    recipe = recipe_to_dict(cell_recipe(cell, run=Path("run"), teacher="t", texts=TEXTS, rates={}))
    old = settings_of({**recipe, "start": {key: value for key, value in recipe["start"].items() if key != "basis"}})
    assert differing(settings(method), old) == (["start.basis"] if reads_it else [])
    assert settings(method, basis="principal") == old


def test_weights_by_name_count_as_a_whole_and_older_recipes_had_none() -> None:
    recipe = {"train": {"seed": 1}, "objective": {"clone_weight": 0.2}}
    old = settings_of(recipe)
    assert old == settings_of({"train": {"seed": 1, "rate_shares": {}}, "objective": {**recipe["objective"]}})
    shares = {"train": {"seed": 1, "rate_shares": {"down_proj": 0.5}}}
    more = {"train": {"seed": 1, "rate_shares": {"down_proj": 0.5, "v_proj": 0.5}}}
    assert differing(old, settings_of(shares)) == ["train.rate_shares"]
    assert differing(settings_of(more), settings_of(shares)) == ["train.rate_shares"]
    terms = {"objective": {"clone_weight": 0.2, "clone_term_weights": {"mlp-out": 2.0}, "clone_depth_slope": 0.5}}
    assert differing(old, settings_of(terms)) == ["objective.clone_depth_slope", "objective.clone_term_weights"]


def test_places_and_guards_tell_nothing_apart_and_all_else_does() -> None:
    assert settings("red") == settings("red", run="there")
    assert "train.divergence_factor" not in settings("red")
    assert differing(settings("red"), settings("published")) == [
        "objective.temperature",
        "start.method",
        "train.learning_rate",
    ]


def test_texts_and_teacher_are_part_of_it_and_a_missing_key_says_nothing() -> None:
    texts = {"origin": "folder", "sha256": {"train": "a"}}
    one = identity({"run": "x", "train": {"seed": 1}}, texts, "h")
    assert one == {"train.seed": 1, "train.rate_shares": [], "texts.sha256.train": "a", "teacher_hash": "h"}
    check_same(one, {"train.seed": 1, "of.another.version": 3}, "there")
    with pytest.raises(ConfigError, match=r"^there was made with other settings: train\.seed \(2 there, 1 now\)"):
        check_same(one, {**one, "train.seed": 2}, "there")


def test_corrections_by_yes_or_no_are_named_and_their_passes_count_where_they_are_made() -> None:
    old = [settings_of({"student": {"hidden_size": 8, **said}}) for said in ({}, {"correction": False})]
    assert old[0] == old[1] == settings_of({"student": {"hidden_size": 8, "correction": "none"}})
    said = [settings_of({"student": {"correction": value}}) for value in (True, "outputs", "mlp")]
    assert said[0] == said[1]
    assert differing(said[1], said[2]) == ["student.correction"]
    assert differing(settings("default"), settings("default", correction_passes=7)) == ["start.correction_passes"]
    assert differing(settings("output-correction"), settings("output-correction", correction_passes=7)) == []
