"""Documents kept apart: changing the first moves nothing in the second, and where it would, training is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config

from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.data.block import Block
from lrc.data.blocks import Batch, collate
from lrc.errors import ConfigError
from lrc.models.isolation import check_isolation
from lrc.models.pair_model import PairModel
from tests.models.test_pair import fill_random
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher

SLIDING: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
}
FIRST, SECOND = 7, 9
"""Tokens of the two documents; both are longer than the sliding window."""


def packed(first: int, *, document_masking: bool = True) -> Batch:
    """Two documents in one block; `first` chooses the first one's tokens."""
    ids = np.concatenate([(np.arange(FIRST) * 3 + first) % 40 + 4, np.arange(SECOND) % 40 + 4])
    block = Block(ids, "general", np.asarray([0, FIRST]))
    return collate([block], document_masking=document_masking)


def pair_of(family: str) -> PairModel:
    teacher = tiny_teacher(family, **SLIDING.get(family, {}))
    pair = PairModel(teacher, hidden_size=16, variant=Variant(), objective=ObjectiveConfig())
    fill_random(pair)
    return pair.eval()


@torch.no_grad()
def second_document(pair: PairModel, batch: Batch) -> list[torch.Tensor]:
    """Return the student's and the teacher's logits in the second document."""
    student, teacher, _ = pair.hidden_states(batch.input_ids, None, batch.positions)
    student_head, teacher_head = pair.heads()
    return [(student @ student_head.T)[0, FIRST:], (teacher @ teacher_head.T)[0, FIRST:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_changing_document_1_does_not_move_document_2s_logits(family: str) -> None:
    pair = pair_of(family)
    for one, other in zip(second_document(pair, packed(1)), second_document(pair, packed(20)), strict=True):
        assert torch.equal(one, other)
    plain = [second_document(pair, packed(first, document_masking=False)) for first in (1, 20)]
    for one, other in zip(*plain, strict=True):
        assert (one - other).abs().max() > 1e-3  # without masking it does


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_document_has_the_logits_that_it_has_alone(family: str) -> None:
    pair = pair_of(family)
    alone = collate([Block(np.arange(SECOND) % 40 + 4, "general")])
    with torch.no_grad():
        student, teacher, _ = pair.hidden_states(alone.input_ids, None)
        expected = [(states @ head.T)[0] for states, head in zip((student, teacher), pair.heads(), strict=True)]
    for one, other in zip(second_document(pair, packed(1)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_families_pass_the_check(family: str) -> None:
    check_isolation(tiny_teacher(family, **SLIDING.get(family, {})))


def test_a_layer_that_carries_a_state_along_is_refused() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Lfm2Config(vocab_size=48, num_hidden_layers=2, layer_types=["conv", "full_attention"], **sizes)
    teacher = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with pytest.raises(ConfigError, match=r"lfm2 has layers that carry one document into the next"):
        check_isolation(teacher)
