"""The recipe's section `student`: what older recipes said with yes or no."""

from pathlib import Path

import pytest

from lrc.config import load_recipe, recipe_from_dict, recipe_to_dict
from lrc.errors import ConfigError
from tests.tiny import tiny_recipe


@pytest.mark.parametrize(("said", "meant"), [(True, "outputs"), (False, "none"), ("mlp", "mlp"), ("none", "none")])
def test_a_correction_by_yes_or_no_is_read_as_what_it_was(tmp_path: Path, said: object, meant: str) -> None:
    assert tiny_recipe(tmp_path, student__correction=said).student.correction == meant


def test_no_correction_is_what_a_recipe_without_the_key_has(tmp_path: Path) -> None:
    values = recipe_to_dict(tiny_recipe(tmp_path))
    del values["student"]["correction"]
    assert recipe_from_dict(values, origin="here").student.correction == "none"


def test_an_override_by_yes_is_read_too_and_another_word_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: r\nteacher: t\nstudent: {hidden_size: 16}\ndata: {train: d}\ntrain: {max_steps: 1}\n")
    assert load_recipe(path, ("student.correction=true",)).student.correction == "outputs"
    with pytest.raises(ConfigError, match=r"student\.correction"):
        load_recipe(path, ("student.correction=all",))
