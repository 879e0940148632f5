"""Overrides as nested values, what is none, and the place of a mistake in what is merged."""

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrc.config import Recipe
from lrc.errors import ConfigError
from lrc.overrides import not_a_section, place_of, read_overrides


def test_overrides_are_nested_values_and_the_later_one_wins() -> None:
    found = OmegaConf.to_container(read_overrides(["train.seed=1", "run=a=b", "train.seed=2"], origin="x"))
    assert found == {"train": {"seed": 2}, "run": "a=b"}
    assert OmegaConf.to_container(read_overrides([], origin="x")) == {}


@pytest.mark.parametrize("text", ["seed", "=1", "train.=1", ".seed=1", "train..seed=1"])
def test_another_form_is_refused_with_what_it_would_override(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^mine\.yaml: an override must look like section\.key=value, found"):
        read_overrides(["run=a", text], origin="mine.yaml")


def test_a_value_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^An override of \['run=\[a'\] can't be read as section\.key=value"):
        read_overrides(["run=[a"], origin="mine.yaml")


def test_a_section_that_is_a_plain_value_is_found_at_any_depth() -> None:
    good, bad = OmegaConf.create({"train": {"seed": 1}}), OmegaConf.create({"prepare": {"cluster": "gpu"}})
    assert not_a_section([good, bad], Recipe) == "prepare.cluster"
    assert not_a_section([OmegaConf.create({"data": [1]})], Recipe) == "data"
    assert not_a_section([good], Recipe) == "a section"


def test_a_source_is_counted_in_the_list_that_is_wrong() -> None:
    good = OmegaConf.create({"prepare": {"sources": [{"path": "x"}, {"path": "y"}]}})
    bad = OmegaConf.create({"prepare": {"sources": [{"path": "x"}, {"path": "y", "kept": 1}]}})
    with pytest.raises(OmegaConfBaseException) as caught:
        OmegaConf.merge(OmegaConf.structured(Recipe), good, bad)
    assert place_of(caught.value, [good, bad]) == "prepare.sources[1].kept"
