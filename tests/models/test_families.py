"""Every promised family passes the oracles with its odd features on; see docs/families.md."""

import pytest
import torch
from transformers import FlexOlmoConfig

from lrc.clone.sites import Variant
from lrc.models.oracles import merged_student
from lrc.models.start import fill_start
from lrc.models.tiny import random_model
from lrc.start_config import StartConfig
from tests.models.family_configs import BASE, FAMILY_CONFIGS
from tests.models.test_pair import VARIANTS, batch, counts_of, fill_identity, fill_random, gradients, make_pair

pytestmark = pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor")
NOT_FITTED = ("qwen3_moe", "mixtral", "phi", "cohere", "cohere2", "gpt_oss", "deepseek_v3", "falcon_h1")
"""Families with writers that a calibrated start leaves at their `pca` values."""
each_family = pytest.mark.parametrize("family", FAMILY_CONFIGS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])


@each_family
@each_variant
def test_identity_projection_reproduces_the_teacher(family: str, variant: Variant) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair = make_pair(teacher, 32, variant)
    fill_identity(pair, teacher)
    ids, labels, valid = batch()
    with torch.no_grad():
        student, its_teacher = pair.logits(ids)
    torch.testing.assert_close(student, teacher(ids).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(its_teacher, teacher(ids).logits, atol=1e-5, rtol=0)
    with torch.no_grad():
        losses = pair(ids, labels, valid, counts_of(labels, valid))
    assert float(losses.kl) < 1e-5
    assert float(losses.clone.max()) < 1e-5


@each_family
def test_nothing_is_dropped_at_random_in_training(family: str) -> None:
    pair = make_pair(random_model(FAMILY_CONFIGS[family]()), 16).train()
    fill_random(pair)
    ids, labels, valid = batch()
    with torch.no_grad():
        losses = [pair(ids, labels, valid, counts_of(labels, valid)) for _ in range(2)]
        measured = pair.eval()(ids, labels, valid, counts_of(labels, valid))
    assert float(losses[0].objective) == float(losses[1].objective)
    assert float(losses[0].kl) == pytest.approx(float(measured.kl), rel=1e-6)


@each_family
@each_variant
def test_merged_equals_factored(family: str, variant: Variant) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair = make_pair(teacher, 16, variant)
    fill_random(pair)
    ids, _, _ = batch()
    with torch.no_grad():
        factored, _ = pair.logits(ids)
    torch.testing.assert_close(merged_student(pair, teacher)(ids).logits, factored, atol=1e-5, rtol=1e-5)


@each_family
@each_variant
def test_a_gradient_reaches_every_trained_tensor(family: str, variant: Variant) -> None:
    pair = make_pair(random_model(FAMILY_CONFIGS[family]()), 16, variant)
    fill_random(pair)
    for name, gradient in gradients(pair, *batch()).items():
        assert float(gradient.abs().max()) > 0, name
        assert bool(gradient.isfinite().all()), name


@each_family
def test_five_steps_from_a_pca_start_lower_the_loss(family: str) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair = make_pair(teacher, 16)
    ids, labels, valid = batch(rows=4, length=12)
    fill_start(pair, teacher, StartConfig(method="pca"), [ids], seed=0)
    optimizer = torch.optim.AdamW(pair.trained().values(), lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = pair(ids, labels, valid, counts_of(labels, valid)).objective
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.99 * losses[0]


@each_family
def test_generation_with_a_cache_equals_without(family: str) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair = make_pair(teacher, 16)
    fill_random(pair)
    student = merged_student(pair, teacher)
    ids, _, _ = batch(rows=2, length=5)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = student.generate(ids, use_cache=True, **settings)
    assert torch.equal(with_cache, student.generate(ids, use_cache=False, **settings))
    with torch.no_grad():
        known = student(ids[:, :3], use_cache=True).past_key_values
        last = student(ids[:, 3:4], past_key_values=known, use_cache=True).logits[:, -1]
    torch.testing.assert_close(last, student(ids[:, :4]).logits[:, -1], atol=1e-5, rtol=1e-4)


def test_the_teacher_never_drops_activations_while_its_student_trains() -> None:
    config = FAMILY_CONFIGS["qwen3"]()
    config.attention_dropout = 0.9
    teacher = random_model(config)
    ids, _, _ = batch()
    expected = teacher.model(ids).last_hidden_state
    pair = make_pair(teacher, 16)
    fill_random(pair)
    assert pair.training
    with torch.no_grad():
        found = pair.hidden_states(ids, None)[1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@each_family
def test_a_calibrated_start_is_better_than_its_prior(family: str) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    batches = [batch(rows=4, length=16, seed=seed)[0] for seed in range(6)]
    ids, labels, valid = batch(rows=4, length=16, seed=9)
    kl = {}
    for method in ("pca", "calibrated"):
        pair = make_pair(teacher, 16)
        report = fill_start(pair, teacher, StartConfig(method=method), batches, seed=0)
        with torch.no_grad():
            kl[method] = float(pair(ids, labels, valid, counts_of(labels, valid)).kl)
        assert bool(report.kept) is (method == "calibrated" and family in NOT_FITTED)
    assert kl["calibrated"] < kl["pca"]


def test_a_calibrated_start_follows_experts_that_read_the_stream_without_a_norm() -> None:
    teacher = random_model(FlexOlmoConfig(**BASE, num_experts=4, num_experts_per_tok=2))
    batches = [batch(rows=4, length=16, seed=seed)[0] for seed in range(6)]
    ids, labels, valid = batch(rows=4, length=16, seed=9)
    kl = {}
    for method in ("pca", "calibrated"):
        pair = make_pair(teacher, 16)
        fill_start(pair, teacher, StartConfig(method=method), batches, seed=0)
        with torch.no_grad():
            kl[method] = float(pair(ids, labels, valid, counts_of(labels, valid)).kl)
    assert kl["calibrated"] < kl["pca"]
