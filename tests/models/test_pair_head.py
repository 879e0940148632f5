"""The head's gradient is the same on both ways: straight to its projection, and through its merged matrix."""

import pytest
import torch

from lrc.clone.sites import Variant
from lrc.method_config import DenseForm
from lrc.models.dense import Dense
from lrc.models.step_weights import step_weights_for
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.test_pair import VARIANTS, batch, fill_random, gradients, make_pair
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher

WITH_BIAS = ("phi",)
"""Families whose head has a bias: always through the merge."""


@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
@pytest.mark.parametrize("family", [*FAMILIES, *WITH_BIAS])
def test_both_ways_give_the_same_gradients(family: str, variant: Variant) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]()) if family in WITH_BIAS else tiny_teacher(family)
    pair = make_pair(teacher.double(), 16, variant, lm_weight=0.3, clone_weight=0.0)
    fill_random(pair)
    inputs = batch(rows=1, length=8)
    assert pair.head.is_cheaper_straight(8) is (family not in WITH_BIAS)
    straight = gradients(pair, *inputs)
    pair.head.merge_shared_by = 2**20
    assert not pair.head.is_cheaper_straight(8)
    for name, gradient in gradients(pair, *inputs).items():
        atol = 1e-6 * float(gradient.abs().max())
        torch.testing.assert_close(
            straight[name], gradient, rtol=1e-5, atol=atol, msg=lambda text, name=name: name + text
        )


def test_micro_batches_that_share_a_merge_count_together() -> None:
    pair = make_pair(tiny_teacher("llama"), 16)
    assert pair.head.is_cheaper_straight(8)
    weights = step_weights_for(pair, "auto", accumulation=100)
    assert weights is not None
    weights.form()
    assert not pair.head.is_cheaper_straight(8)
    weights.pull_back()
    assert pair.head.is_cheaper_straight(8)


@pytest.mark.parametrize("form", ["replace", "complement"])
def test_a_free_head_is_no_projection(form: DenseForm) -> None:
    pair = make_pair(tiny_teacher("llama"), 16)
    pair.enter(Dense(form=form, tensors="all"))
    assert not pair.head.is_cheaper_straight(8)
