"""The oracles pass for a right pair and fail for one that is wrong anywhere between embedding and logits."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lrc.clone.merge import merge
from lrc.errors import ConfigError
from lrc.models import oracles, pair_model
from lrc.models.discovery import Architecture, discover
from lrc.models.oracles import require_family, run_oracles
from lrc.models.pair_model import PairLosses, PairModel
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


def merge_otherwise(patch: pytest.MonkeyPatch) -> None:
    """Let the exported weights be others than those that are trained."""
    right = oracles.student_tensor

    def wrong(plan: Any, name: str, source: Tensor, trained: dict[str, Tensor]) -> Tensor:
        return right(plan, name, source, trained) * (1.5 if name.endswith("down_proj.weight") else 1)

    patch.setattr(oracles, "student_tensor", wrong)


def cut_gradients(patch: pytest.MonkeyPatch) -> None:
    """Let no gradient reach the projections of keys and values."""

    def cut(weight: Tensor, projection: Tensor, axis: int) -> Tensor:
        return merge(weight, projection.detach() if weight.shape[0] == 12 else projection, axis)

    patch.setattr("lrc.models.part.merge", cut)


def go_uphill(patch: pytest.MonkeyPatch) -> None:
    """Turn every gradient around."""
    right = PairModel.forward

    def wrong(self: PairModel, *arguments: Any) -> PairLosses:
        losses = right(self, *arguments)
        return losses._replace(objective=2 * losses.objective.detach() - losses.objective)

    patch.setattr(PairModel, "forward", wrong)


def round_on_saving(patch: pytest.MonkeyPatch) -> None:
    """Let a folder hold other weights than the model that it is saved from."""
    right = PreTrainedModel.save_pretrained

    def wrong(self: Any, folder: str) -> None:
        right(copy.deepcopy(self).to(torch.bfloat16), folder)

    patch.setattr(PreTrainedModel, "save_pretrained", wrong)


def forget_the_cache(patch: pytest.MonkeyPatch) -> None:
    """Let the student, and the student alone, run without what its cache holds."""
    right = oracles.merged_student

    def forget(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if name != "past_key_values"}

    def wrong(pair: PairModel, teacher: Any) -> Any:
        student = right(pair, teacher)
        student.register_forward_pre_hook(forget, with_kwargs=True)
        return student

    patch.setattr(oracles, "merged_student", wrong)


@pytest.mark.parametrize(
    ("spoil", "name", "said"),
    [
        (merge_otherwise, "merged = factored", "logits differ by"),
        (cut_gradients, "gradient reaches all", ".self_attn.k_proj gets none"),
        (go_uphill, "five steps lower the loss", " to "),
        (round_on_saving, "export and reload", "logits differ by"),
        (forget_the_cache, "cache = no cache", "logits differ by"),
    ],
)
def test_each_oracle_fails_for_a_fault_of_its_own(
    spoil: Callable[[pytest.MonkeyPatch], None], name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = random_model(FAMILY_CONFIGS["qwen3"]())
    spoil(monkeypatch)
    failed = {result.name: result.found for result in run_oracles(teacher, hidden_size=20) if not result.passed}
    assert list(failed) == [name]
    assert said in failed[name]
    assert "Error" not in failed[name]  # it has run to its end


def test_a_family_with_a_tensor_that_no_gradient_reaches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_gradients(monkeypatch)
    with pytest.raises(ConfigError, match=r"the gradient reaches all oracle \(projections\.\S+\.k_proj gets none\)"):
        require_family(FAMILY_CONFIGS["qwen3"]())


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    require_family(FAMILY_CONFIGS["llama"]())
    assert torch.equal(torch.get_rng_state(), before)


def test_each_outcome_is_reported_when_its_oracle_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    names = ("first", "second")
    monkeypatch.setattr(oracles, "_oracles", lambda narrow: dict.fromkeys(names, lambda teacher: (True, str(told))))
    results = run_oracles(None, hidden_size=1, report=lambda result: told.append(result.name))
    assert [(result.name, result.found) for result in results] == [("first", "[]"), ("second", "['first']")]


def test_a_chosen_width_is_used() -> None:
    results = run_oracles(random_model(FAMILY_CONFIGS["qwen3"]()), hidden_size=20)
    assert all(result.passed for result in results)
