"""The plan read backwards: hidden sizes for a number of parameters, the largest that fits."""

import pytest

from lrc.clone.sites import Variant
from lrc.errors import ConfigError
from lrc.models.discovery import discover
from lrc.plan.inverse import allowed_sizes, hidden_size_for, largest_size, parse_count
from lrc.plan.sizes import measure_sizes
from tests.models.tiny_configs import tiny_config
from tests.plan.published import llama_3_2_3b

TIED = Variant(tie_embedding_projection=True)


def test_counts_are_read_as_people_write_them() -> None:
    assert parse_count("1.5B", what="--params") == 1.5e9
    assert parse_count("400m", what="--params") == 400e6
    assert parse_count("2e9", what="--params") == 2e9


@pytest.mark.parametrize("text", ["", "B", "-1B", "0", "many", "nan", "1.2.3"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--params must be a number above 0"):
        parse_count(text, what="--params")


def test_the_hidden_size_of_a_published_student_is_found_from_its_parameters() -> None:
    config = llama_3_2_3b()
    architecture = discover(config)
    answer = hidden_size_for(1_606_374_912, config=config, architecture=architecture, variant=TIED)
    assert answer.exact == pytest.approx(1536)
    between = hidden_size_for(1.5e9, config=config, architecture=architecture, variant=TIED)
    (low, low_count), (high, high_count) = between.nearest
    assert low < between.exact < high
    assert low_count < 1.5e9 < high_count
    assert low_count == measure_sizes(config, architecture, TIED, low).student_parameters


def test_parameters_that_no_student_has_are_refused() -> None:
    config = tiny_config("llama")
    with pytest.raises(ConfigError, match="--params must lie between"):
        hidden_size_for(1e9, config=config, architecture=discover(config), variant=Variant())


def test_allowed_sizes_are_those_that_the_class_takes() -> None:
    assert allowed_sizes(tiny_config("llama")) == list(range(4, 32, 4))  # Llama wants a multiple of its 4 heads
    assert allowed_sizes(tiny_config("qwen2")) == list(range(2, 32, 2))
    assert allowed_sizes(llama_3_2_3b())[0] % 24 == 0


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 9, 10])
def test_the_largest_size_that_fits_is_found(limit: int) -> None:
    sizes = list(range(1, 10))
    assert largest_size(sizes, lambda size: size <= limit) == (min(limit, 9) or None)
