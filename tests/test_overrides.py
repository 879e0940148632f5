"""Overrides as nested values, and what is none."""

import pytest
from omegaconf import OmegaConf

from lrc.errors import ConfigError
from lrc.overrides import read_overrides


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
