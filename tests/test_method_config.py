"""The recipe's method and phases: when the dense phase begins, what a method makes of the objective, refusals."""

from typing import Any

import pytest

from lrc.config import recipe_from_dict
from lrc.errors import ConfigError
from lrc.method_config import ObjectiveConfig, PhasesConfig, first_dense_step, method_objective
from tests.least_recipe import LEAST


@pytest.mark.parametrize(
    ("share", "first"), [(0.0, None), (1.0, 0), (0.5, 5), (0.25, 8), (0.01, 9), (0.99, 0)]
)  # at least one step, rounded to whole ones
def test_the_dense_phase_takes_its_share_of_steps_at_the_end(share: float, first: int | None) -> None:
    assert first_dense_step(PhasesConfig(dense_share=share), 10) == first


def test_a_method_names_its_own_losses() -> None:
    recipe = ObjectiveConfig(lm_weight=0.3, kl_weight=0.7, clone_weight=2.0, temperature=4.0)
    assert method_objective("clone", recipe) == method_objective("tiny_bert", recipe) == recipe
    kd, origin = method_objective("only_kd", recipe), method_objective("origin", recipe)
    assert (kd.lm_weight, kd.kl_weight, kd.clone_weight, kd.temperature, kd.without) == (0.3, 0.7, 0.0, 4.0, ("all",))
    assert (origin.lm_weight, origin.kl_weight, origin.clone_weight, origin.without) == (1.0, 0.0, 0.0, ("all",))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"phases": {"dense_share": 1.1}}, r"phases\.dense_share must lie in 0\.\.1, found 1\.1"),
        ({"phases": {"dense_learning_rate": 0.0}}, r"phases\.dense_learning_rate must be a finite number above 0"),
        ({"objective": {"kl_skew": 1.0}}, r"objective\.kl_skew must lie in 0\.\.1, 1 left out"),
        ({"method": "only_kd", "phases": {"dense_share": 0.5}}, r"phases\.dense_share must be 0 with method = only_kd"),
        ({"method": "only_kd", "objective": {"kl_weight": 0.0}}, r"only_kd needs objective\.kl_weight or"),
        ({"method": "distil"}, "method"),
        ({"phases": {"dense_tensors": "attention"}}, r"phases\.dense_tensors"),
    ],
)
def test_what_can_t_hold_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe_from_dict(LEAST | values, origin="test")


@pytest.mark.parametrize("method", ["clone", "tiny_bert"])
def test_a_recipe_without_any_loss_is_refused(method: str) -> None:
    nothing = {"lm_weight": 0.0, "kl_weight": 0.0, "clone_weight": 1.0, "without": ["all"]}
    with pytest.raises(ConfigError, match=r"objective\.without must not hold all .* or set lm_weight or"):
        recipe_from_dict(LEAST | {"method": method, "objective": nothing}, origin="test")
    for change in ({"lm_weight": 1.0}, {"kl_weight": 1.0}, {"without": ["attn-q"]}):
        recipe_from_dict(LEAST | {"method": method, "objective": nothing | change}, origin="test")
    recipe_from_dict(LEAST | {"method": "origin", "objective": nothing}, origin="test")
