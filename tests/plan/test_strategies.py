"""Strategies: which ones a number of devices can use, and what training calls them."""

from typing import get_args, get_type_hints

from lrc.config import TrainConfig
from lrc.plan.strategies import ONE_DEVICE, STRATEGIES, strategies_for
from lrc.teacher_config import TeacherWeightsConfig


def test_one_device_has_one_strategy() -> None:
    assert [strategy.name for strategy in strategies_for(1)] == ["1 device"]
    assert strategies_for(8) == STRATEGIES


def test_an_offloaded_teacher_is_planned_whole_on_every_device() -> None:
    offloaded = TeacherWeightsConfig(format="int8", offload="cpu")
    assert [strategy.name for strategy in strategies_for(8, offloaded)] == ["DDP", "ZeRO-1", "ZeRO-2"]
    assert strategies_for(1, offloaded) == (ONE_DEVICE,)
    assert strategies_for(8, TeacherWeightsConfig(format="int8")) == STRATEGIES


def test_what_training_refuses_is_left_out() -> None:
    assert [way.name for way in strategies_for(8, refused={"ZeRO-1", "FSDP2"})] == ["DDP", "ZeRO-2", "ZeRO-3"]
    assert strategies_for(1, refused={"DDP"}) == (ONE_DEVICE,)


def test_each_strategy_is_one_that_a_recipe_can_ask_for() -> None:
    named = set(get_args(get_type_hints(TrainConfig)["strategy"])) - {"auto"}
    assert {strategy.setting for strategy in STRATEGIES} == named
