"""What lies between the head's products is done on blocks of rows, which change nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone import head
from lrc.clone.divergence import Direction
from lrc.clone.head import HeadWeights
from tests.clone.head_inputs import VOCABULARY, each_softcap, each_temperature, each_weighting, make_inputs


@pytest.mark.parametrize("has_teacher", [True, False], ids=["teacher", "alone"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "skewed"])
@each_weighting
@each_temperature
@each_softcap
def test_blocks_of_rows_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
    lm: float,
    kl: float,
    temperature: float,
    softcap: float | None,
    direction: Direction,
    has_teacher: bool,
) -> None:
    weights = HeadWeights(lm=lm, kl=kl, temperature=temperature, softcap=softcap, direction=direction)
    inputs = make_inputs()
    if not has_teacher:
        inputs.teacher = None
    expected = inputs.losses(weights, 5)
    wanted = inputs.gradients(expected[0])
    monkeypatch.setattr(head, "BLOCK_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # chunks of 5 and 2 rows in blocks of 2, 2, 1 and 2
    losses = inputs.losses(weights, 5)
    for found, other in zip((*losses, *inputs.gradients(losses[0])), (*expected, *wanted), strict=True):
        torch.testing.assert_close(found, other, rtol=0, atol=1e-12)


def test_each_core_takes_the_stated_bytes_of_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    reduced = head._block_losses

    def spied(products: Tensor, *rest: Any, **named: Any) -> Any:
        taken.append(len(products))
        return reduced(products, *rest, **named)

    monkeypatch.setattr(head, "_block_losses", spied)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    inputs = make_inputs(positions=20, dtype=torch.float32)
    for size, blocks in ((4 * VOCABULARY, [3] * 6 + [2]), (2 * 4 * VOCABULARY + 7, [6, 6, 6, 2]), (1, [3] * 6 + [2])):
        monkeypatch.setattr(head, "BLOCK_BYTES", size)
        taken.clear()
        inputs.losses(HeadWeights(lm=0.0, kl=1.0), 20)
        assert taken == blocks
