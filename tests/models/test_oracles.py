"""The oracles pass for a right pair and fail for one that is wrong anywhere between embedding and logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lrc.errors import ConfigError
from lrc.models import pair_model
from lrc.models.discovery import Architecture, discover
from lrc.models.oracles import require_family, run_oracles
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let pairs be made of an architecture with one wrong constant."""
    changes: dict[str, float] = request.param

    def wrong(config: Any) -> Architecture:
        found = discover(config)
        scales = replace(found.scale_law.scales, **changes)
        return replace(found, scale_law=replace(found.scale_law, scales=scales))

    monkeypatch.setattr(pair_model, "discover", wrong)


@pytest.mark.parametrize("broken", [{"logits": 1.0}, {"beside_embedding": 1.0}], indirect=True, ids=str)
@pytest.mark.usefixtures("broken")
def test_a_wrong_constant_is_caught() -> None:
    with pytest.raises(ConfigError, match=r"granite can't be cloned: .* fails the identity oracle \(logits differ"):
        require_family(FAMILY_CONFIGS["granite"]())


def test_the_failing_oracles_are_named_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrc.models.part.merge", lambda weight, projection, axis: weight * 0 + 1)
    results = run_oracles(random_model(FAMILY_CONFIGS["mistral"]()))
    assert len(results) == 6
    assert not results[0].passed


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    require_family(FAMILY_CONFIGS["llama"]())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_chosen_width_is_used() -> None:
    results = run_oracles(random_model(FAMILY_CONFIGS["qwen3"]()), hidden_size=20)
    assert all(result.passed for result in results)
