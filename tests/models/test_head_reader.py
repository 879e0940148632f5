"""What the head reads and its matrix make the model's own logits, in every family with odd logits."""

import pytest
import torch

from lrc.clone.head import softcapped
from lrc.models.head_reader import HeadReader
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "granite", "cohere", "qwen3_moe"])
def test_inputs_times_matrix_are_the_logits(family: str) -> None:
    model = random_model(FAMILY_CONFIGS[family]())
    reader = HeadReader(model)
    ids = torch.randint(3, 48, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), reader.captured() as states:
        expected = model(input_ids=ids, use_cache=False).logits
    assert len(states) == 1
    found = softcapped(reader.inputs(states[0]) @ reader.matrix().T, reader.softcap)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_nothing_is_captured_outside_the_block() -> None:
    model = random_model(FAMILY_CONFIGS["llama"]())
    reader = HeadReader(model)
    with reader.captured() as states:
        pass
    model(input_ids=torch.tensor([[5, 6]]))
    assert states == []
