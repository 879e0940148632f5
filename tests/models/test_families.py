"""Every promised family passes the oracles with its odd features on; see docs/families.md."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone.head import softcapped
from lrc.clone.sites import Variant
from lrc.models.merge_plan import merge_plan, student_tensor
from lrc.models.pair_model import PairModel
from tests.models.family_configs import FAMILY_CONFIGS, random_model
from tests.models.test_pair import VARIANTS, batch, counts_of, fill_random, gradients, make_pair

pytestmark = pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor")
each_family = pytest.mark.parametrize("family", FAMILY_CONFIGS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])


def factored_logits(pair: PairModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        student, _, _ = pair.hidden_states(ids, None)
        return softcapped(student @ pair.heads()[0].T, pair.softcap)


def merged(pair: PairModel, teacher: Any) -> Any:
    """Merge a pair's student into a stock model by its plan."""
    plan = merge_plan(pair.architecture, pair.variant)
    stored = teacher.state_dict()
    trained = {name: parameter.detach() for name, parameter in pair.trained().items()}
    student = type(teacher)(pair.student_config).eval().requires_grad_(False)
    weights = {name: student_tensor(plan, name, stored[name], trained) for name in plan.names}
    left = student.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {pair.architecture.head}
    return student


@each_family
@each_variant
def test_identity_projection_reproduces_the_teacher(family: str, variant: Variant) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair = make_pair(teacher, 32, variant)
    tensors = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, parameter in pair.trained().items():
            parameter.copy_(torch.eye(32) if name.startswith("projections") else tensors[name.removeprefix("gains.")])
    ids, labels, valid = batch()
    torch.testing.assert_close(factored_logits(pair, ids), teacher(ids).logits, atol=1e-5, rtol=0)
    with torch.no_grad():
        losses = pair(ids, labels, valid, counts_of(labels, valid))
    assert float(losses.kl) < 1e-5
    assert float(losses.clone.max()) < 1e-5


@each_family
@each_variant
def test_merged_equals_factored(family: str, variant: Variant) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair = make_pair(teacher, 16, variant)
    fill_random(pair)
    ids, _, _ = batch()
    torch.testing.assert_close(merged(pair, teacher)(ids).logits, factored_logits(pair, ids), atol=1e-5, rtol=1e-5)


@each_family
@each_variant
def test_a_gradient_reaches_every_trained_tensor(family: str, variant: Variant) -> None:
    pair = make_pair(random_model(FAMILY_CONFIGS[family]()), 16, variant)
    fill_random(pair)
    for name, gradient in gradients(pair, *batch()).items():
        assert float(gradient.abs().max()) > 0, name
        assert bool(gradient.isfinite().all()), name
