"""The library's seeds: its numbers inside, the caller's own numbers outside."""

import inspect
import random

import numpy as np
import pytest
import torch

from lrc.evaluation.task_seeds import OTHER_SEED, PYTHON_SEED, library_seeds, random_state


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def fail_after_drawing() -> None:
    drawn()
    raise KeyError


@pytest.mark.filterwarnings("ignore")  # what other libraries warn of when lm_eval imports them
def test_the_seeds_are_those_of_the_librarys_command() -> None:
    from lm_eval.evaluator import simple_evaluate

    told = inspect.signature(simple_evaluate).parameters
    names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    assert [told[name].default for name in names] == [PYTHON_SEED, OTHER_SEED, OTHER_SEED, OTHER_SEED]


def test_the_numbers_inside_are_the_same_each_time() -> None:
    with library_seeds():
        first, second = drawn(), drawn()
    random.seed(PYTHON_SEED)
    np.random.seed(OTHER_SEED)
    torch.manual_seed(OTHER_SEED)
    assert (drawn(), drawn()) == (first, second)


def test_a_later_part_goes_on_where_the_earlier_one_ended() -> None:
    with library_seeds():
        drawn()
        state, second = random_state(), drawn()
    for _ in range(2):
        with library_seeds(state):
            assert drawn() == second


def test_the_callers_numbers_are_not_disturbed() -> None:
    before = random_state()
    undisturbed = drawn()
    torch.set_rng_state(before.torch)
    random.setstate(before.python)
    np.random.set_state(before.numpy)
    with pytest.raises(KeyError), library_seeds():
        fail_after_drawing()
    assert drawn() == undisturbed
