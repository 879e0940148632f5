"""The pair's oracles: identity, merged = factored, exact gradients, independence of padding and terms."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OlmoConfig, OlmoForCausalLM

from lrc.clone.sites import Variant
from lrc.config import CHECKPOINTING, Checkpointing, ObjectiveConfig
from lrc.models.merge_plan import merge_plan, student_tensor
from lrc.models.pair_model import PairModel, StepCounts
from tests.models.tiny_configs import FAMILIES, SIZES
from tests.tiny import tiny_teacher

STEP = 2e-3
"""Step of the finite differences: stock norms and rotary embeddings compute in float32 even in a float64 model."""
VARIANTS = [
    Variant(),
    Variant(attention_projections="io", ffn_projections="io"),
    Variant(tie_embedding_projection=True),
]


def make_pair(teacher: nn.Module, size: int, variant: Variant = VARIANTS[0], **objective: Any) -> PairModel:
    return PairModel(teacher, hidden_size=size, variant=variant, objective=ObjectiveConfig(**objective)).train()


def fill_random(pair: PairModel, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in pair.trained().items():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if name.startswith("projections") else 1 + 0.1 * noise)


def fill_identity(pair: PairModel, teacher: nn.Module) -> None:
    """Give a pair of the teacher's own width ones on the diagonal and the teacher's gains."""
    tensors = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, parameter in pair.trained().items():
            is_projection = name.startswith("projections")
            parameter.copy_(torch.eye(len(parameter)) if is_projection else tensors[name.removeprefix("gains.")])


def clipping_teacher() -> nn.Module:
    """Make an OLMo that clamps most of its queries, keys and values, in place."""
    torch.manual_seed(0)
    config = OlmoConfig(**{name: size for name, size in SIZES.items() if name != "head_dim"}, clip_qkv=0.05)
    return OlmoForCausalLM(config).eval().requires_grad_(False)


def batch(rows: int = 3, length: int = 10, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(4, 48, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    return ids, labels, torch.ones_like(ids, dtype=torch.bool)


def counts_of(labels: Tensor, valid: Tensor) -> StepCounts:
    return StepCounts(labels=int((labels != -100).sum()), positions=int(valid.sum()), sequences=labels.shape[0])


def gradients(pair: PairModel, *inputs: Tensor) -> dict[str, Tensor]:
    pair.zero_grad()
    pair(*inputs, counts_of(inputs[1], inputs[2])).objective.backward()
    return {name: parameter.grad.clone() for name, parameter in pair.trained().items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
@pytest.mark.parametrize("family", FAMILIES)
def test_identity_projection_reproduces_the_teacher(family: str, variant: Variant, tied: bool) -> None:
    teacher = tiny_teacher(family, tie_word_embeddings=tied)
    pair = make_pair(teacher, 32, variant)
    fill_identity(pair, teacher)
    ids, labels, valid = batch()
    with torch.no_grad():
        student, _, _ = pair.hidden_states(ids, None)
        logits = student @ pair.heads()[0].T
        losses = pair(ids, labels, valid, counts_of(labels, valid))
    torch.testing.assert_close(logits, teacher(ids).logits, atol=1e-5, rtol=0)
    assert float(losses.kl) < 1e-5
    assert float(losses.clone.max()) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_identity_holds_with_the_teachers_gains_folded_into_the_projections(family: str, tied: bool) -> None:
    teacher = tiny_teacher(family, tie_word_embeddings=tied)
    pair = make_pair(teacher, 32)
    unit, tensors = pair.architecture.scales.unit_gain, dict(teacher.named_parameters())
    with torch.no_grad():
        for name, parameter in pair.trained().items():
            parameter.copy_(torch.eye(32) if name.startswith("projections") else torch.full((32,), unit))
        for index, stages in enumerate(pair.architecture.stages):
            for stage in stages:
                fold = torch.diag(tensors[f"model.layers.{index}.{stage.norm}.weight"] + 1 - unit)
                for reader in stage.readers:
                    pair.trained()[f"projections.model.layers.{index}.{reader}"].copy_(fold)
                if stage.post_norm:
                    name = f"model.layers.{index}.{stage.post_norm}.weight"
                    pair.trained()[f"gains.{name}"].copy_(tensors[name])
        pair.trained()["projections.lm_head"].copy_(torch.diag(tensors["model.norm.weight"] + 1 - unit))
        ids, _, _ = batch()
        student, _, _ = pair.hidden_states(ids, None)
        logits = student @ pair.heads()[0].T
    torch.testing.assert_close(logits, teacher(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_student_equals_factored(family: str, variant: Variant, dtype: torch.dtype) -> None:
    teacher = tiny_teacher(family, tie_word_embeddings=True).to(dtype)
    pair = make_pair(teacher, 16, variant)
    fill_random(pair)
    trained, tensors = pair.trained(), dict(teacher.named_parameters())
    plan = merge_plan(pair.architecture, variant)
    stock = type(teacher)(pair.student_config).to(dtype).eval()
    tied = tensors[pair.architecture.embedding]
    merged = {name: student_tensor(plan, name, tensors.get(name, tied), dict(trained)).to(dtype) for name in plan.names}
    assert set(dict(stock.named_parameters())) == set(merged)
    stock.load_state_dict(merged, strict=False)
    ids, _, _ = batch()
    with torch.no_grad():
        student, _, _ = pair.hidden_states(ids, None)
        factored = (student @ pair.heads()[0].T).float()
        logits = stock(ids).logits.float()
    # bf16: the factored merge rounds P to bf16 first, the export merges in fp32; 5 % of the largest logit covers it
    limit = 1e-5 if dtype == torch.float32 else 0.05
    assert float((logits - factored).abs().max()) <= limit * float(factored.abs().max().clamp_min(1))


def test_a_tied_projection_of_an_untied_teacher_keeps_two_matrices() -> None:
    variant = Variant(tie_embedding_projection=True)
    untied = make_pair(tiny_teacher("llama", tie_word_embeddings=False), 16, variant)
    tied = make_pair(tiny_teacher("llama", tie_word_embeddings=True), 16, variant)
    assert untied.student_config.tie_word_embeddings is False
    assert tied.student_config.tie_word_embeddings is True
    assert "lm_head.weight" in merge_plan(untied.architecture, variant).merges
    assert "lm_head.weight" not in merge_plan(tied.architecture, variant).merges


@pytest.mark.parametrize("space", ["student", "teacher"])
@pytest.mark.parametrize("error", ["relative", "raw"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("policy", ["selective", "layer"])
def test_checkpointed_gradients_are_exact(family: str, error: str, space: str, policy: Checkpointing) -> None:
    pair = make_pair(
        tiny_teacher(family), 16, VARIANTS[1], lm_weight=1.0, clone_error=error, attention_output_space=space
    )
    fill_random(pair)
    plain = gradients(pair, *batch())
    pair.set_activation_checkpointing(policy)
    again = gradients(pair, *batch())
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.parametrize("policy", ["selective", "layer"])
def test_recomputed_activations_die_in_the_backward_pass(policy: Checkpointing) -> None:
    pair = make_pair(tiny_teacher("llama"), 16)
    fill_random(pair)
    pair.set_activation_checkpointing(policy)
    made: list[weakref.ref[Any]] = []

    def note(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        made.append(weakref.ref(args[0].untyped_storage()))  # what the product keeps for its weight's gradient

    for layer in pair.layers:
        layer.twin.get_submodule("self_attn.o_proj").register_forward_hook(note)
    gradients(pair, *batch())
    assert len(made) == 2 * len(pair.layers)
    assert [storage() for storage in made] == [None] * len(made)


@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_gradient_matches_finite_differences_of_the_objective(variant: Variant, checkpointing: Checkpointing) -> None:
    pair = make_pair(tiny_teacher("llama"), 16, variant, lm_weight=0.5, clone_weight=0.7).double()
    fill_random(pair)
    pair.set_activation_checkpointing(checkpointing)
    inputs = batch(2, 6)
    found = gradients(pair, *inputs)
    counts = counts_of(inputs[1], inputs[2])
    generator = torch.Generator().manual_seed(1)
    for name, parameter in pair.trained().items():
        assert float(found[name].abs().sum()) > 0, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter.add_(sign * STEP * direction)
                values.append(float(pair(*inputs, counts).objective))
                parameter.sub_(sign * STEP * direction)
        numeric = (values[0] - values[1]) / (2 * STEP)
        assert numeric == pytest.approx(float((found[name] * direction).sum()), rel=3e-3, abs=5e-4), name


def test_padding_and_ignored_labels_count_nowhere() -> None:
    pair = make_pair(tiny_teacher("qwen3"), 16, lm_weight=1.0)
    fill_random(pair)
    ids, labels, valid = batch()
    plain = gradients(pair, ids, labels, valid)
    pad = torch.full((3, 4), 7)
    wider = (
        torch.cat([ids, pad], 1),
        torch.cat([labels, torch.full_like(pad, -100)], 1),
        torch.cat([valid, torch.zeros_like(pad, dtype=torch.bool)], 1),
    )
    padded = gradients(pair, *wider)
    for name, gradient in plain.items():
        torch.testing.assert_close(padded[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_each_clone_term_can_be_left_out() -> None:
    teacher = tiny_teacher("llama")
    names = make_pair(teacher, 16).term_names
    assert names == ("attn-q", "attn-k", "attn-v", "attn-out", "mlp-gate", "mlp-up", "mlp-out")
    assert make_pair(teacher, 16, VARIANTS[1]).term_names == ("attn-in", "attn-out", "mlp-in", "mlp-out")
    for left_out in names:
        pair = make_pair(teacher, 16, without=(left_out,))
        assert pair.term_names == tuple(name for name in names if name != left_out)
    pair = make_pair(teacher, 16, without=("all",))
    fill_random(pair)
    ids, labels, valid = batch()
    assert pair(ids, labels, valid, counts_of(labels, valid)).clone.numel() == 0


def test_attention_output_in_teacher_space_gives_its_projection_no_clone_gradient() -> None:
    options: dict[str, Any] = {"kl_weight": 0.0, "clone_weight": 1.0, "clone_error": "raw"}
    others = tuple(name for name in make_pair(tiny_teacher("llama"), 16).term_names if name != "attn-out")
    last = "projections.model.layers.1.self_attn.o_proj"
    for space, has_gradient in (("student", True), ("teacher", False)):
        pair = make_pair(tiny_teacher("llama"), 16, without=others, attention_output_space=space, **options)
        fill_random(pair)
        ids, labels, valid = batch()
        pair(ids, labels, valid, counts_of(labels, valid)).objective.backward()
        gradient = pair.trained()[last].grad
        assert (gradient is not None and float(gradient.abs().sum()) > 0) is has_gradient


def test_clone_points_are_the_modules_own_outputs_where_the_model_writes_into_them() -> None:
    teacher = clipping_teacher()
    pair = make_pair(teacher, 32)
    fill_identity(pair, teacher)
    calls: list[nn.Module] = []
    for layer in pair.layers:
        layer.teacher.register_forward_hook(lambda module, *_: calls.append(module))
    ids, labels, valid = batch()
    for times in (2, 1):  # the first run finds out what has to be copied
        with torch.no_grad():
            losses = pair(ids, labels, valid, counts_of(labels, valid))
        assert float(losses.clone.max()) < 1e-5
        assert len(calls) == times * len(pair.layers)
        calls.clear()


def test_clone_sums_equal_a_plain_recomputation_from_hooks() -> None:
    """Stock merged student and stock teacher, every activation kept, compared in float64."""
    teacher = tiny_teacher("llama").double()
    pair = make_pair(teacher, 16, clone_error="raw").double()
    fill_random(pair)
    plan = merge_plan(pair.architecture, pair.variant)
    tensors, trained = dict(teacher.named_parameters()), pair.trained()
    stock = type(teacher)(pair.student_config).double().eval()
    tied = tensors[pair.architecture.embedding]
    with torch.no_grad():
        for name, target in stock.named_parameters():
            source = tensors.get(name, tied)
            if name in plan.merges:
                projection, axis = plan.merges[name]
                factor = trained[projection]
                target.copy_(source @ factor if axis == 1 else factor.T @ source)
            elif name in plan.gains:
                target.copy_(trained[plan.gains[name]])
    kept: dict[str, dict[str, Tensor]] = {"teacher": {}, "student": {}}
    for side, model in (("teacher", teacher), ("student", stock)):
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                module.register_forward_hook(
                    lambda _, args, out, side=side, name=name: kept[side].__setitem__(name, out)
                )
    ids, labels, valid = batch()
    with torch.no_grad():
        teacher(ids)
        stock(ids)
        sums = pair(ids, labels, valid, counts_of(labels, valid)).clone
    modules = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    modules += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    for layer in range(2):
        for column, module in enumerate(modules):
            name = f"model.layers.{layer}.{module}"
            ours, theirs = kept["student"][name], kept["teacher"][name]
            if module.endswith(("o_proj", "down_proj")):
                theirs = theirs @ trained[f"projections.{name}"]
            expected = (ours - theirs).square().mean(-1).sum()
            torch.testing.assert_close(sums[layer, column], expected, atol=1e-10, rtol=1e-10)
