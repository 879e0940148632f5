"""Held-out text of a run: ranks beside the best there could be, a collapsed student told from a healthy one."""

import math
from typing import Any

import pytest
import torch

from lrc.clone.initialise import effective_rank
from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig, StartConfig
from lrc.evaluation.agreement import measure_pair
from lrc.evaluation.held_out import COLLAPSED_BELOW, HeldOutText, rank_share
from lrc.models.pair_model import PairModel
from lrc.models.start import fill_start
from tests.tiny import tiny_teacher


@pytest.fixture
def pair() -> PairModel:
    """A healthy pair: its stream is the teacher's projected by principal directions."""
    teacher = tiny_teacher("llama")
    pair = PairModel(teacher, hidden_size=16, variant=Variant(), objective=ObjectiveConfig())
    fill_start(pair, teacher, StartConfig(method="calibrated", tokens=1), [ids(0, rows=16)], seed=0)
    return pair.eval()


def ids(seed: int, *, rows: int = 4) -> torch.Tensor:
    return torch.randint(48, (rows, 32), generator=torch.Generator().manual_seed(seed))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    tokens = ids(1)
    return [(tokens, torch.cat((tokens[:, 1:], torch.full((4, 1), -100)), 1))]


@torch.no_grad()
def collapse(pair: PairModel) -> None:
    """Let every writer and the embedding write into one direction."""
    for name, parameter in pair.trained().items():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            direction = torch.ones(1, parameter.shape[1]) / 4
            parameter.copy_(parameter.mean(1, keepdim=True) * direction)


def test_the_measures_are_the_agreement_and_the_ranks(pair: PairModel) -> None:
    measured = HeldOutText(pair, batches()).measure(0)
    assert {key: measured[key] for key in measured if key in measure_pair(pair, batches()).summary()} == measure_pair(
        pair, batches()
    ).summary()
    seen: list[torch.Tensor] = []
    handle = pair.layers[-1].teacher.register_forward_hook(lambda _, __, output: seen.append(output))
    pair.hidden_states(ids(1), None)
    handle.remove()
    states = seen[0].flatten(0, -2).double()
    states = states / states.square().mean(-1, keepdim=True).sqrt()
    singular = torch.linalg.svdvals(states)[:16]  # another way than eigenvalues of the second moment
    shares = singular / singular.sum()
    expected = math.exp(-float((shares * shares.log()).sum()))
    assert measured["teacher_effective_rank"][-1] == pytest.approx(expected, rel=1e-4)
    assert len(measured["effective_rank"]) == len(measured["teacher_effective_rank"]) == len(pair.layers)
    share = rank_share(measured["effective_rank"], measured["teacher_effective_rank"])
    assert measured["effective_rank_share"] == share


def test_a_collapsed_student_is_told_from_a_healthy_one(pair: PairModel) -> None:
    text = HeldOutText(pair, batches())
    healthy = text.measure(0)
    assert healthy["effective_rank_share"] > COLLAPSED_BELOW
    assert not healthy["has_collapsed"]
    collapse(pair)
    collapsed = text.measure(1)
    assert collapsed["has_collapsed"]
    assert max(collapsed["effective_rank"]) < 2
    assert collapsed["teacher_effective_rank"] == healthy["teacher_effective_rank"]


def test_more_is_measured_where_it_is_asked_for(pair: PairModel) -> None:
    def also(found: PairModel, step: int) -> dict[str, Any]:
        assert found is pair
        return {"twice": 2 * step}

    text = HeldOutText(pair, batches(), also)
    assert text.measure(3)["twice"] == 6
    assert "twice" not in HeldOutText(pair, batches()).measure(3)


def test_the_share_is_a_mean_over_layers() -> None:
    assert rank_share([1.0, 3.0], [2.0, 2.0]) == pytest.approx(1.0)


def test_the_largest_directions_alone_can_be_counted() -> None:
    moment = torch.diag(torch.tensor([4.0, 4.0, 4.0, 0.01]))
    assert float(effective_rank(moment, largest=3)) == pytest.approx(3)
    assert float(effective_rank(moment, largest=2)) == pytest.approx(2)
    assert 3 < float(effective_rank(moment)) < 4
