"""Every launcher's words for the number of processes are read, by training and the published commands alike."""

import pytest

from lrc.config import TrainConfig
from lrc.training.launch_environment import RANK_NAMES, WORLD_SIZE_NAMES, is_true, launched_rank, num_launched
from lrc.training.strategy import choose_strategy
from lrc.verbs.published_launch import read_launch


@pytest.mark.parametrize(("size", "rank"), list(zip(WORLD_SIZE_NAMES, RANK_NAMES, strict=True)))
def test_every_launcher_is_heard_alike(size: str, rank: str) -> None:
    environment = {size: "4", rank: "3", "ACCELERATE_USE_CPU": "1"}
    launch = read_launch(environment)
    assert (launch.num_processes, launch.rank) == (4, 3)
    assert (num_launched(environment), launched_rank(environment)) == (4, 3)
    assert choose_strategy(TrainConfig(max_steps=1, strategy="zero3"), environment) == "zero3"


def test_the_first_name_counts_and_without_one_there_is_one_process() -> None:
    assert num_launched({"OMPI_COMM_WORLD_SIZE": "2", "WORLD_SIZE": "8"}) == 8
    assert (num_launched({}), launched_rank({})) == (1, 0)


@pytest.mark.parametrize("word", ["1", "true", "True", "t", "yes", "Y", "on"])
def test_accelerates_words_for_true(word: str) -> None:
    from accelerate.utils import str_to_bool

    assert is_true(word)
    assert str_to_bool(word)
    assert not any(is_true(other) for other in ("", "0", "no", "off"))
