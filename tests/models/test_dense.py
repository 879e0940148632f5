"""Free tensors: which they are, that they start where the merge stands, and that all rooms name the same ones."""

from typing import Any

import pytest
import torch
from torch import nn

from lrc.clone.sites import Variant
from lrc.errors import CheckpointError
from lrc.models.dense import FROM_SCRATCH, Dense, dense_of_facts, dense_to_facts
from lrc.models.discovery import discover
from lrc.models.merge_plan import check_free, check_trained, merge_plan, student_tensor
from lrc.models.pair_model import PairModel
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import stock_student
from tests.models.test_pair import VARIANTS, batch, counts_of, fill_random, make_pair
from tests.tiny import tiny_teacher

PHASES = [
    Dense(tensors="mlp"),
    Dense(tensors="all"),
    Dense(tensors="mlp", form="complement"),
    Dense(tensors="all", form="complement"),
]
each_phase = pytest.mark.parametrize("dense", PHASES, ids=lambda dense: f"{dense.tensors}-{dense.form}")
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])


def filled(variant: Variant = VARIANTS[0], **objective: Any) -> tuple[nn.Module, PairModel]:
    teacher = tiny_teacher("qwen2", tie_word_embeddings=True)
    pair = make_pair(teacher, 16, variant, **objective)
    fill_random(pair)
    return teacher, pair


def gradient(pair: PairModel) -> dict[str, torch.Tensor]:
    pair.zero_grad()
    ids, labels, valid = batch()
    pair(ids, labels, valid, counts_of(labels, valid)).objective.backward()
    return {name: value.grad for name, value in pair.trained().items() if value.grad is not None}


@each_variant
@each_phase
def test_a_phase_begins_where_the_student_stands(dense: Dense, variant: Variant) -> None:
    _, pair = filled(variant)
    ids, labels, valid = batch()
    with torch.no_grad():
        logits = pair.logits(ids)[0]
        losses = pair(ids, labels, valid, counts_of(labels, valid))
        pair.enter(dense)
        again = pair(ids, labels, valid, counts_of(labels, valid))
        torch.testing.assert_close(pair.logits(ids)[0], logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.objective, losses.objective, rtol=1e-6, atol=0)
    torch.testing.assert_close(again.clone, losses.clone, rtol=1e-5, atol=1e-6)  # frozen projections compare on


@each_phase
def test_free_weights_get_the_gradient_of_the_merged_ones(dense: Dense) -> None:
    teacher, pair = filled(clone_weight=0.0, lm_weight=0.5)
    student = stock_student(pair, teacher)
    pair.enter(dense)
    found = gradient(pair)
    free = {name.removeprefix("dense."): value for name, value in found.items() if name.startswith("dense.")}
    tensors = dict(student.named_parameters())
    for name in free:
        tensors[name].requires_grad_()
    ids, labels, _ = batch()
    logits, theirs = (model(input_ids=ids, use_cache=False).logits for model in (student, teacher))
    kept = labels != -100
    log_p, log_q = logits[kept].log_softmax(-1), theirs[kept].log_softmax(-1)
    lm = -log_p.gather(-1, labels[kept][:, None]).mean()
    (0.5 * lm + (log_q.exp() * (log_q - log_p)).sum(-1).mean()).backward()
    for name, value in free.items():
        torch.testing.assert_close(value, tensors[name].grad, rtol=1e-4, atol=1e-7, msg=name)
    layer = {f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert layer <= set(free)
    assert ("model.layers.0.self_attn.q_proj.weight" in free) is (dense.tensors == "all")


def test_beside_an_update_at_zero_projections_get_the_gradient_that_they_had() -> None:
    _, pair = filled()
    before = gradient(pair)
    pair.enter(Dense(tensors="all", form="complement"))
    after = gradient(pair)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-7, msg=name)


@each_variant
@each_phase
def test_the_plan_of_export_names_what_a_pair_stores(dense: Dense, variant: Variant) -> None:
    teacher, pair = filled(variant)
    pair.enter(dense)
    with torch.no_grad():
        for value in pair.trained().values():
            value.add_(0.01 * torch.randn_like(value))
    plan = merge_plan(pair.architecture, variant, dense)
    stored = {name: value.detach() for name, value in pair.stored().items()}
    assert plan.trained == set(pair.trained())
    assert set(stored) <= plan.trained | plan.spare
    check_trained(plan, stored, 32, 16)
    theirs: Any = teacher.state_dict()
    for part in pair.parts():
        for name, value in part.student_tensors().items():
            if (full := part.prefix + name) in plan.names:
                torch.testing.assert_close(student_tensor(plan, full, theirs[full], stored), value, msg=full)


def test_a_tied_student_has_one_table() -> None:
    _, pair = filled(VARIANTS[2])
    pair.enter(Dense(tensors="all"))
    assert pair.student_config.tie_word_embeddings
    assert pair.head.dense["weight"] is next(pair.parts()).dense["weight"]
    assert "dense.model.embed_tokens.weight" in pair.trained()
    assert "dense.lm_head.weight" not in pair.trained()


@each_variant
def test_going_back_trains_what_the_first_phase_trained(variant: Variant) -> None:
    _, pair = filled(variant)
    before = {name: value.shape for name, value in pair.stored().items()}
    kept = pair.trained()["projections.model.layers.0.self_attn.o_proj"]
    pair.enter(Dense(tensors="mlp"))
    assert pair.trained()["projections.model.layers.0.self_attn.o_proj"] is kept
    pair.enter(None)
    assert {name: value.shape for name, value in pair.stored().items()} == before
    assert set(pair.trained()) == set(pair.stored())


def test_shared_inputs_keep_the_projection_that_clone_terms_lift_with() -> None:
    _, pair = filled(VARIANTS[1])
    pair.enter(Dense(tensors="mlp"))
    assert set(pair.layers[0].frozen()) == {
        "projections.model.layers.0.mlp.input",
        "projections.model.layers.0.mlp.down_proj",
    }
    _, bare = filled(VARIANTS[1], without=("all",))
    bare.enter(Dense(tensors="mlp"))
    assert not bare.layers[0].frozen()


@each_variant
@each_phase
def test_what_a_phase_trains_is_known_before_it_begins(dense: Dense, variant: Variant) -> None:
    _, pair = filled(variant)
    expected = pair.trained_shapes(dense)
    pair.enter(dense)
    assert {name: value.shape for name, value in pair.trained().items()} == expected


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "phi"])
def test_families_with_odd_tensors_go_over_too(family: str) -> None:
    from lrc.models.tiny import random_model, tiny_config

    teacher = random_model(tiny_config(FAMILY_CONFIGS[family](), num_layers=2))
    pair = make_pair(teacher, teacher.config.hidden_size // 2)
    fill_random(pair)
    ids = batch()[0]
    with torch.no_grad():
        logits = pair.logits(ids)[0]
        pair.enter(Dense(tensors="all"))
        torch.testing.assert_close(pair.logits(ids)[0], logits, rtol=1e-4, atol=1e-4)


def test_every_tensor_of_a_student_from_scratch_is_free_or_a_gain() -> None:
    _, pair = filled(without=("all",))
    pair.enter(FROM_SCRATCH)
    plan = merge_plan(pair.architecture, pair.variant, FROM_SCRATCH)
    assert (plan.merges, plan.inherited) == ({}, ())
    assert set(plan.gains) | set(plan.free) == set(plan.names)
    assert "model.layers.0.self_attn.q_proj.bias" in plan.free
    assert set(pair.trained()) == set(pair.stored()) == plan.trained


def test_free_weights_of_another_shape_are_refused() -> None:
    teacher, pair = filled()
    plan = merge_plan(discover(teacher.config), VARIANTS[0], Dense(tensors="mlp"))
    student = stock_student(pair, teacher)
    pair.enter(Dense(tensors="mlp"))
    stored = {name: value.detach() for name, value in pair.stored().items()}
    check_free(plan, stored, student)
    name = "dense.model.layers.0.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=rf"{name} must be \[56, 16\], found \[16, 56\]"):
        check_free(plan, {**stored, name: stored[name].T}, student)


@pytest.mark.parametrize("dense", [None, FROM_SCRATCH, *PHASES])
def test_a_checkpoint_says_its_phase(dense: Dense | None) -> None:
    assert dense_of_facts({"phase": dense_to_facts(dense)}) == dense


def test_checkpoints_from_before_phases_hold_projections() -> None:
    assert dense_of_facts({}) is None
    for phase in ({"tensors": "some"}, {"tensors": "mlp", "shape": "round"}):
        with pytest.raises(CheckpointError, match="is damaged"):
            dense_of_facts({"phase": phase})
