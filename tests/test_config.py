"""The recipe: what a file and overrides become, defaults, and the round trip."""

import ast
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import lrc.config
from lrc.config import (
    ObjectiveConfig,
    Recipe,
    StudentConfig,
    TrainConfig,
    load_recipe,
    recipe_from_dict,
    recipe_to_dict,
    recipe_to_yaml,
)
from lrc.data_config import DataConfig
from tests.least_recipe import LEAST


def test_what_a_file_leaves_out_has_its_default(recipe_file: Path) -> None:
    assert load_recipe(recipe_file) == Recipe(
        run="runs/x",
        teacher="owner/model",
        student=StudentConfig(hidden_size=32),
        data=DataConfig(train="train.jsonl"),
        train=TrainConfig(max_steps=30),
    )


def test_values_of_every_type_are_read(recipe_file: Path) -> None:
    recipe_file.write_text(
        yaml.safe_dump(LEAST)
        + "trust_remote_code: true\n"
        + "objective: {temperature: 40, clone_error: raw, without: [attn-q, mlp-out]}\n"
        + "evaluate: {tokens: 100}\n"
    )
    recipe = load_recipe(recipe_file)
    assert recipe.trust_remote_code is True
    assert recipe.objective == ObjectiveConfig(temperature=40.0, clone_error="raw", without=("attn-q", "mlp-out"))
    assert isinstance(recipe.objective.temperature, float)
    assert recipe.evaluate.tokens == 100


@pytest.mark.parametrize("spelling", ["1e-4", "1.0e-4", "0.0001"])
def test_a_rate_may_be_written_in_any_way(recipe_file: Path, spelling: str) -> None:
    recipe_file.write_text(
        yaml.safe_dump(LEAST).replace("max_steps: 30", f"max_steps: 30\n  learning_rate: {spelling}")
    )
    assert load_recipe(recipe_file).train.learning_rate == 1e-4
    assert load_recipe(recipe_file, (f"train.learning_rate={spelling}",)).train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("spelling", "policy"),
    [("false", "none"), ("true", "layer"), ("none", "none"), ("selective", "selective"), ("layer", "layer")],
)
def test_checkpointing_is_a_policy_and_was_a_switch(recipe_file: Path, spelling: str, policy: str) -> None:
    key = "activation_checkpointing"
    recipe_file.write_text(yaml.safe_dump(LEAST).replace("max_steps: 30", f"max_steps: 30\n  {key}: {spelling}"))
    recipe = load_recipe(recipe_file)
    assert recipe.train.activation_checkpointing == policy
    assert load_recipe(recipe_file, (f"train.{key}={spelling}",)) == recipe
    assert load_recipe(recipe_file, (f"train.{key}=true", f"train.{key}={spelling}")) == recipe
    assert recipe_from_dict(recipe_to_dict(recipe), origin="test") == recipe


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        (
            "train.max_steps=5",
            "train.max_steps=7",
            "teacher=folder/a=b",
            "objective.without=[attn-q,mlp-up]",
            "train.tags=[a]",
            "data.held_out=null",
            "student.tie_embedding_projection=true",
        ),
    )
    assert recipe.train.max_steps == 7
    assert recipe.train.tags == ("a",)
    assert recipe.teacher == "folder/a=b"
    assert recipe.objective.without == ("attn-q", "mlp-up")
    assert recipe.data.held_out is None
    assert recipe.student == StudentConfig(hidden_size=32, tie_embedding_projection=True)


def test_overrides_may_complete_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("")
    overrides = ("run=r", "teacher=t", "student.hidden_size=8", "data.train=d", "train.max_steps=1")
    assert load_recipe(path, overrides).student.hidden_size == 8


def test_a_path_below_the_home_folder_may_begin_with_a_tilde(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    prepare = {"sources": [{"path": "~/texts/*.jsonl"}], "decontaminate": ["~/benchmarks"]}
    recipe_file.write_text(yaml.safe_dump({**LEAST, "run": "~/runs/mine", "prepare": prepare}))
    keys = ("teacher", "data.train", "data.held_out", "sft.model", "sft.data", "sft.held_out")
    recipe = load_recipe(recipe_file, tuple(f"{key}=~/{key}" for key in keys))
    assert recipe.run == "/home/me/runs/mine"
    assert (recipe.teacher, recipe.data.train) == ("/home/me/teacher", "/home/me/data.train")
    assert recipe.data.held_out == "/home/me/data.held_out"
    assert recipe.sft.model == "/home/me/sft.model"
    assert (recipe.sft.data, recipe.sft.held_out) == ("/home/me/sft.data", "/home/me/sft.held_out")
    assert recipe.prepare.sources[0].path == "/home/me/texts/*.jsonl"
    assert recipe.prepare.decontaminate == ("/home/me/benchmarks",)
    assert load_recipe(recipe_file, ("run=runs/~/a",)).run == "runs/~/a"


positive = st.integers(1, 10**6)
finite = st.floats(1e-6, 1e6)
words = st.lists(st.text("abc-", min_size=1, max_size=5), max_size=3)
recipes = st.fixed_dictionaries(
    {
        "run": st.text(st.characters(codec="ascii", exclude_characters="$~"), min_size=1, max_size=8),
        "teacher": st.just("owner/model"),
        "student": st.fixed_dictionaries(
            {"hidden_size": st.integers(64, 4096)},
            optional={"ffn_projections": st.sampled_from(["all", "io"]), "tie_embedding_projection": st.booleans()},
        ),
        "data": st.fixed_dictionaries(
            {"train": st.just("train.jsonl")}, optional={"held_out": st.none() | st.text("ab/*.", max_size=5)}
        ),
        "train": st.fixed_dictionaries(
            {"max_steps": positive},
            optional={
                "learning_rate": finite,
                "schedule": st.sampled_from(["linear", "cosine", "wsd", "constant"]),
                "save_total_limit": st.none() | positive,
                "tags": words,
                "warmup_ratio": st.floats(0, 1),
                "rate_shares": st.dictionaries(st.sampled_from(["gains", "o_proj"]), finite),
            },
        ),
    },
    optional={
        "trust_remote_code": st.booleans(),
        "start": st.fixed_dictionaries({}, optional={"outlier_channels": st.integers(0, 64), "tokens": positive}),
        "objective": st.fixed_dictionaries(
            {},
            optional={
                "temperature": finite,
                "without": words,
                "lm_weight": finite,
                "clone_term_weights": st.dictionaries(st.sampled_from(["attn-q", "mlp-out"]), finite),
                "clone_depth_slope": st.floats(-1, 1),
            },
        ),
    },
)


@given(values=recipes)
@settings(deadline=None, max_examples=15)
def test_a_recipe_survives_the_round_trip_through_plain_values_and_yaml(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = recipe_from_dict(values, origin="test")
    for section, content in values.items():
        for key, value in content.items() if isinstance(content, dict) else ():
            found = getattr(getattr(recipe, section), key)
            assert found == (tuple(value) if isinstance(value, list) else value)
    plain = recipe_to_dict(recipe)
    assert recipe_from_dict(plain, origin="test") == recipe
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(recipe_to_yaml(recipe))
    assert load_recipe(path) == recipe


def test_a_recipe_can_t_be_changed(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    for holder, name in ((recipe, "run"), (recipe.train, "max_steps"), (recipe.student, "hidden_size")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(holder, name, 1)


def test_every_field_says_what_it_means() -> None:
    module = ast.parse(Path(lrc.config.__file__).read_text())
    for section in (node for node in module.body if isinstance(node, ast.ClassDef)):
        for field, after in zip(section.body, [*section.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config"):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented, f"{section.name}: {ast.unparse(field.target)} has no docstring"


def test_the_default_objective_is_one_that_can_be_trained() -> None:
    objective = ObjectiveConfig()
    assert objective.kl_weight > 0
    assert math.isfinite(objective.temperature)
    assert objective.without == ()
