"""The table of facts: each holds for the stock class that its source names."""

import pytest
import torch

from lrc.clone.head import softcapped
from lrc.models.facts import logit_softcap
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_logits_are_capped_as_the_stock_class_does(family: str) -> None:
    model = random_model(FAMILY_CONFIGS[family]())
    cap = logit_softcap(model.config)
    assert cap == 3.0
    assert isinstance(cap, float)
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        plain = model.lm_head(model.model(ids).last_hidden_state)
        torch.testing.assert_close(softcapped(plain, cap), model(ids).logits)
    assert float((plain - softcapped(plain, cap)).abs().max()) > 0.05  # the cap is felt


@pytest.mark.parametrize("family", ["llama", "granite", "cohere"])
def test_a_family_without_a_cap_has_none(family: str) -> None:
    assert logit_softcap(FAMILY_CONFIGS[family]()) is None


def test_a_cap_that_is_switched_off_is_none() -> None:
    config = FAMILY_CONFIGS["gemma2"]()
    config.final_logit_softcapping = None
    assert logit_softcap(config) is None
