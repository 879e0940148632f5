"""The objective against stock models in float64, its shares, and which clone terms there are."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone.sites import Variant
from lrc.errors import ConfigError
from lrc.models.oracles import merged_student
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import recorded, stock_student
from tests.models.test_pair import VARIANTS, counts_of, fill_random, gradients, make_pair
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher

COUNTS = StepCounts(labels=50, positions=61, sequences=7)
"""Those of a whole step: unlike any that the micro-batch itself would give."""
READERS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
WRITERS = ["self_attn.o_proj", "mlp.down_proj"]


def ragged_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Four sequences of 10, 7, 9 and 3 tokens, padded on the right."""
    ids = torch.randint(4, 48, (4, 10), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([10, 7, 9, 3])
    valid = torch.arange(10)[None] < lengths[:, None]
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:].where(valid[:, 1:], -100)
    return ids.where(valid, 0), labels, valid


def plain_clone(pair: PairModel, student: dict[str, Any], teacher: dict[str, Any], valid: Tensor) -> Tensor:
    """Sum each term's error over valid positions, `[terms of all layers]`, from every activation of both models."""
    trained = pair.trained()
    sums = []
    for layer in range(2):
        modules = [f"model.layers.{layer}.{name}" for name in (*READERS, *WRITERS)]
        if pair.variant.attention_projections == "io":  # one lifted input for q, k, v, another for gate and up
            modules = [name for name in modules if not name.endswith(("k_proj", "v_proj", "up_proj"))]
        for name in modules:
            (read, ours), (theirs_read, theirs) = student[name][0], teacher[name][0]
            shared = trained.get(f"projections.{name.rpartition('.')[0]}.input")
            if name.endswith(tuple(WRITERS)):
                theirs = theirs @ trained[f"projections.{name}"]
            elif shared is not None:
                ours, theirs = read @ shared.T, theirs_read
            error = (ours - theirs).square().mean(-1)
            if pair.objective.clone_error == "relative":
                error = error / theirs.square().mean(-1).clamp_min(1e-6)
            sums.append(error[valid].sum())
    return torch.stack(sums)


def plain_objective(pair: PairModel, teacher: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    ids, labels, valid = inputs
    student, settings = stock_student(pair, teacher), pair.objective
    names = [f"model.layers.{layer}.{name}" for layer in range(2) for name in (*READERS, *WRITERS)]
    with recorded(student, names) as ours, recorded(teacher, names) as theirs:
        logits, teacher_logits = (model(input_ids=ids, use_cache=False).logits for model in (student, teacher))
    kept = labels != -100
    lm = -logits[kept].log_softmax(-1).gather(-1, labels[kept][:, None]).sum()
    p, q = ((made[kept] / settings.temperature).softmax(-1) for made in (logits, teacher_logits))
    mixture = settings.kl_skew * q + (1 - settings.kl_skew) * p
    first, second = {"forward": (q, p), "reverse": (p, q), "skewed": (q, mixture)}[settings.kl_direction]
    kl = (first * (first.log() - second.log())).sum()
    errors = plain_clone(pair, ours, theirs, valid)
    published = settings.kl_reduction == "published"
    kl_share = kl / COUNTS.sequences if published else kl * settings.temperature**2 / COUNTS.labels
    terms = ("attn-q", "attn-k", "attn-v", "mlp-gate", "mlp-up", "attn-out", "mlp-out")  # as `plain_clone` has them
    if len(errors) == 8:
        terms = ("attn-in", "mlp-in", "attn-out", "mlp-out")
    by_term = torch.tensor([settings.clone_term_weights.get(term, 1.0) for term in terms], dtype=errors.dtype)
    by_layer = [(1 + settings.clone_depth_slope * end) * by_term for end in (-1, 1)]
    errors = errors * torch.cat(by_layer)
    clone = errors.mean() if settings.clone_reduction == "mean" else errors.sum()
    return (
        settings.lm_weight * lm / COUNTS.labels
        + settings.kl_weight * kl_share
        + settings.clone_weight * clone / COUNTS.positions
    )


PUBLISHED = {
    "kl_reduction": "published",
    "temperature": 40.0,
    "lm_weight": 1.0,
    "clone_error": "raw",
    "clone_reduction": "sum",
}


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"temperature": 2.0},
        PUBLISHED,
        PUBLISHED | {"temperature": 1.5, "clone_weight": 0.5},
        {"lm_weight": 0.3, "kl_weight": 0.7, "clone_weight": 2.0, "clone_reduction": "sum"},
        {"kl_weight": 0.0, "clone_weight": 0.0, "lm_weight": 1.0},
        {"kl_direction": "reverse"},
        {"kl_direction": "skewed", "kl_skew": 0.3},
        {"kl_direction": "skewed", "kl_skew": 0.3, "temperature": 2.0},
        {"clone_weight": 2.0, "clone_term_weights": {"mlp-out": 3.0}, "clone_depth_slope": -0.5},
        {"clone_weight": 2.0, "clone_reduction": "sum", "clone_depth_slope": 1.0},
    ],
    ids=[
        "default",
        "temperature",
        "published",
        "published, cooler",
        "weights",
        "lm alone",
        "reverse",
        "skewed",
        "skewed, hotter",
        "term and depth",
        "late layers",
    ],
)
@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
def test_the_objective_equals_a_plain_one_with_full_logits(variant: Variant, objective: dict[str, Any]) -> None:
    teacher = tiny_teacher("llama", tie_word_embeddings=True).double()
    pair = make_pair(teacher, 16, variant, **objective).double()
    fill_random(pair)
    inputs = ragged_batch()
    with torch.no_grad():
        found, expected = pair(*inputs, COUNTS).objective, plain_objective(pair, teacher, inputs)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_objective_of_every_family_is_the_plain_one(family: str) -> None:
    capped = {"final_logit_softcapping": 2.0} if family == "gemma3_text" else {}
    teacher = tiny_teacher(family, **capped).double()
    pair = make_pair(teacher, 16, temperature=3.0, lm_weight=0.5, clone_weight=0.9).double()
    fill_random(pair)
    inputs = ragged_batch()
    with torch.no_grad():
        found, expected = pair(*inputs, COUNTS).objective, plain_objective(pair, teacher, inputs)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_losses_to_log_are_sums_in_nats_without_temperature_squared() -> None:
    teacher = tiny_teacher("llama").double()
    pair = make_pair(teacher, 16, temperature=2.0).double()
    fill_random(pair)
    ids, labels, valid = ragged_batch()
    losses = pair(ids, labels, valid, COUNTS)
    student = stock_student(pair, teacher)
    with torch.no_grad():
        logits, teacher_logits = student(ids).logits, teacher(ids).logits
    log_p = logits.log_softmax(-1)
    for row in range(4):
        kept = labels[row] != -100
        expected = -log_p[row, kept].gather(-1, labels[row, kept, None]).sum()
        torch.testing.assert_close(losses.lm[row], expected, rtol=1e-6, atol=0)
    p, q = ((made / 2).softmax(-1)[labels != -100] for made in (logits, teacher_logits))
    torch.testing.assert_close(losses.kl, (q * (q / p).log()).sum(), rtol=1e-6, atol=0)
    assert losses.clone.shape == (2, 7)
    assert losses.objective.requires_grad
    assert not any(tensor.requires_grad for tensor in (losses.lm, losses.kl, losses.clone))


@pytest.mark.parametrize("objective", [{"temperature": 2.0}, PUBLISHED], ids=["default", "published"])
def test_shares_and_gradients_of_micro_batches_add_up_to_the_step_s(objective: dict[str, Any]) -> None:
    pair = make_pair(tiny_teacher("qwen2").double(), 16, **objective).double()
    fill_random(pair)
    inputs = ragged_batch()
    counts = counts_of(inputs[1], inputs[2])
    whole, total = gradients(pair, *inputs), float(pair(*inputs, counts).objective.detach())
    pair.zero_grad()
    shares = []
    for rows in (slice(0, 1), slice(1, 4)):
        share = pair(*(tensor[rows] for tensor in inputs), counts).objective
        share.backward()
        shares.append(float(share.detach()))
    assert sum(shares) == pytest.approx(total, rel=1e-9)
    assert all(share < total for share in shares)
    for name, parameter in pair.trained().items():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-6, atol=1e-10, msg=name)


def test_a_step_without_labels_or_positions_is_zero_and_finite() -> None:
    pair = make_pair(tiny_teacher("llama"), 16, lm_weight=1.0)
    fill_random(pair)
    ids, labels, valid = ragged_batch()
    nothing = (ids, torch.full_like(labels, -100), torch.zeros_like(valid))
    found = gradients(pair, *nothing)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found.values())
    assert pair(*nothing, counts_of(*nothing[1:])).objective == 0


@pytest.mark.parametrize(
    ("variant", "without", "named", "has"),
    [
        (VARIANTS[0], ("attn-q", "attn-z", "attn-in"), "attn-in, attn-z", "attn-q, attn-k, attn-v, attn-out, mlp-gate"),
        (VARIANTS[1], ("mlp-up",), "mlp-up", "attn-in, attn-out, mlp-in, mlp-out"),
        (VARIANTS[0], ("all", "mlp_up"), "mlp_up", "attn-q"),
    ],
    ids=["not in all", "not in io", "beside all"],
)
def test_a_clone_term_that_the_student_lacks_is_refused(
    variant: Variant, without: tuple[str, ...], named: str, has: str
) -> None:
    with pytest.raises(ConfigError, match=rf"this student lacks: {named}\. It has {has}"):
        make_pair(tiny_teacher("llama"), 16, variant, without=without)


@pytest.mark.parametrize("without", [(), ("all",)], ids=["terms", "no terms"])
def test_evaluation_mode_measures_no_clone_terms(without: tuple[str, ...]) -> None:
    pair = make_pair(tiny_teacher("llama"), 16, lm_weight=1.0, clone_weight=5.0, without=without)
    fill_random(pair)
    inputs = ragged_batch()
    pair.eval()
    with torch.no_grad():
        losses = pair(*inputs, COUNTS)
    assert losses.clone.shape == (2, 0)
    expected = float(losses.lm.sum() + losses.kl) / COUNTS.labels
    assert float(losses.objective) == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        assert pair.train()(*inputs, COUNTS).clone.shape == (2, 0 if without else 7)


def test_clone_terms_of_no_weight_are_measured_but_not_trained_on() -> None:
    pairs = [make_pair(tiny_teacher("llama"), 16, clone_weight=0.0, without=without) for without in ((), ("all",))]
    for pair in pairs:
        fill_random(pair)
    measured, plain = (pair(*ragged_batch(), COUNTS) for pair in pairs)
    assert float(measured.clone.min()) > 0
    assert torch.equal(measured.objective, plain.objective)


@pytest.mark.parametrize("variant", VARIANTS[:2], ids=["all", "io"])
def test_the_mean_is_over_the_points_that_there_are(variant: Variant) -> None:
    teacher = random_model(FAMILY_CONFIGS["qwen3_moe"]())  # a dense layer before two of experts
    losses = {}
    for reduction in ("mean", "sum"):
        pair = make_pair(teacher, 16, variant, clone_weight=1.0, kl_weight=0.0, clone_reduction=reduction)
        fill_random(pair)
        with torch.no_grad():
            losses[reduction] = pair(*ragged_batch(), COUNTS)
    has_point = [[name in layer for name in pair.term_names] for layer in pair.points]
    assert (losses["mean"].clone > 0).tolist() == has_point
    assert len(set(pair.points)) == (2 if variant == Variant() else 1)
    expected = float(losses["sum"].objective) / sum(map(sum, has_point))
    assert float(losses["mean"].objective) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
def test_what_needs_a_gradient_is_what_is_trained_and_the_teacher_is_not(variant: Variant) -> None:
    teacher = tiny_teacher("gemma3_text")
    pair = make_pair(teacher, 16, variant)
    wanting = {id(parameter) for parameter in pair.parameters() if parameter.requires_grad}
    assert wanting == {id(parameter) for parameter in pair.trained().values()}
    assert len(wanting) == len(pair.trained())
    assert ("projections.lm_head" in pair.trained()) is not variant.tie_embedding_projection
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_states_and_heads_are_those_of_the_stock_models_and_nothing_is_kept() -> None:
    teacher = tiny_teacher("mistral", tie_word_embeddings=True)
    pair = make_pair(teacher, 16)
    fill_random(pair)
    ids, _, valid = ragged_batch()
    stock = stock_student(pair, teacher)
    with torch.no_grad():
        student, theirs, terms = pair.hidden_states(ids, valid)
        torch.testing.assert_close(student, stock.model(ids).last_hidden_state, rtol=0, atol=1e-4)
        torch.testing.assert_close(theirs, teacher.model(ids).last_hidden_state, rtol=0, atol=1e-5)
        torch.testing.assert_close(pair.heads()[0], stock.lm_head.weight)
    assert terms is not None
    assert terms.shape == (2, 7)
    assert pair.heads()[1] is teacher.lm_head.weight
    assert pair.lockstep.teacher_stream is None
    assert not pair.lockstep.terms
    assert pair.hidden_states(ids, None)[2] is None


def test_a_head_s_bias_is_in_both_models_losses() -> None:
    teacher: Any = random_model(FAMILY_CONFIGS["phi"]())
    assert float(teacher.lm_head.bias.abs().max()) > 0.01
    pair = make_pair(teacher, 16)
    fill_random(pair)
    ids, labels, valid = ragged_batch()
    student = merged_student(pair, teacher)
    assert torch.equal(student.lm_head.bias, teacher.lm_head.bias)
    with torch.no_grad():
        losses = pair(ids, labels, valid, counts_of(labels, valid))
        logits, theirs = student(ids).logits, teacher(ids).logits
    lm = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    torch.testing.assert_close(losses.lm, lm.sum(-1), rtol=1e-5, atol=1e-5)
    log_p, log_q = theirs.log_softmax(-1), logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[labels != -100].sum()
    assert float(losses.kl) == pytest.approx(float(kl), rel=1e-4)
