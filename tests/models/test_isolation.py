"""Documents kept apart: changing the first moves nothing in the second, and where it would, training is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Lfm2Config

from lrc.data.block import Block
from lrc.data.blocks import Batch, collate
from lrc.errors import ConfigError
from lrc.models.isolation import check_isolation
from lrc.models.pair_model import PairModel
from lrc.models.tiny import random_model
from tests.models.family_configs import BASE, FAMILY_CONFIGS
from tests.models.test_pair import fill_random, make_pair

pytestmark = pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor")
LEAKS = ("falcon_h1", "gpt_oss")
"""Mamba blocks carry a state along; the stock GPT-OSS makes its masks without positions (transformers 5.23)."""
ISOLATED = [family for family in FAMILY_CONFIGS if family not in LEAKS]
ROUTED = ("qwen3_moe", "mixtral", "deepseek_v3")
"""Experts multiply the tokens routed to them together, so other first documents round otherwise."""
FIRST, SECOND = 7, 9
"""Tokens of the two documents; both are longer than the sliding window."""


def packed(first: int, *, document_masking: bool = True) -> Batch:
    """Two documents in one block; `first` chooses the first one's tokens."""
    ids = np.concatenate([(np.arange(FIRST) * 3 + first) % 40 + 4, np.arange(SECOND) % 40 + 4])
    block = Block(ids, "general", np.asarray([0, FIRST]))
    return collate([block], document_masking=document_masking)


def pair_of(family: str) -> PairModel:
    pair = make_pair(random_model(FAMILY_CONFIGS[family]()), 16)
    fill_random(pair)
    return pair.eval()


@torch.no_grad()
def second_document(pair: PairModel, batch: Batch) -> list[torch.Tensor]:
    """Return the student's and the teacher's logits in the second document."""
    student, teacher, _ = pair.hidden_states(batch.input_ids, None, batch.positions)
    student_head, teacher_head = pair.heads()
    return [(student @ student_head.T)[0, FIRST:], (teacher @ teacher_head.T)[0, FIRST:]]


def test_the_families_of_the_proof_are_among_those_tried() -> None:
    assert {"llama", "qwen3", "gemma3_text", "olmo2", "granite"} <= set(ISOLATED)


@pytest.mark.parametrize("family", ISOLATED)
def test_changing_document_1_does_not_move_document_2s_logits(family: str) -> None:
    pair = pair_of(family)
    for one, other in zip(second_document(pair, packed(1)), second_document(pair, packed(20)), strict=True):
        limit = 1e-6 * float(one.abs().max()) if family in ROUTED else 0.0
        assert float((one - other).abs().max()) <= limit
    plain = [second_document(pair, packed(first, document_masking=False)) for first in (1, 20)]
    for one, other in zip(*plain, strict=True):
        assert (one - other).abs().max() > 1e-3  # without masking it does


@pytest.mark.parametrize("family", ISOLATED)
def test_a_packed_document_has_the_logits_that_it_has_alone(family: str) -> None:
    pair = pair_of(family)
    alone = collate([Block(np.arange(SECOND) % 40 + 4, "general")])
    with torch.no_grad():
        student, teacher, _ = pair.hidden_states(alone.input_ids, None)
        expected = [(states @ head.T)[0] for states, head in zip((student, teacher), pair.heads(), strict=True)]
    for one, other in zip(second_document(pair, packed(1)), expected, strict=True):
        assert float((one - other).abs().max()) < 3e-6 * float(other.abs().max())


@pytest.mark.parametrize("family", ISOLATED)
def test_attention_families_pass_the_check(family: str) -> None:
    config = FAMILY_CONFIGS[family]()
    before = config.to_dict()
    check_isolation(config)
    assert config.to_dict() == before


def lfm2() -> Any:
    return Lfm2Config(**BASE, layer_types=["conv", "full_attention", "conv"])


@pytest.mark.parametrize("family", [*LEAKS, "lfm2"])
def test_a_family_that_leaks_is_refused(family: str) -> None:
    config = lfm2() if family == "lfm2" else FAMILY_CONFIGS[family]()
    with pytest.raises(ConfigError, match=rf"{family} carries one document into the next"):
        check_isolation(config)
