"""A held teacher: the pair computes what a plain pair of the restored weights does, and keeps no whole matrix."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OlmoConfig

from lrc.clone.sites import Variant
from lrc.config import Checkpointing, ObjectiveConfig, StartConfig
from lrc.errors import ConfigError
from lrc.evaluation.agreement import measure_pair
from lrc.models.discovery import discover
from lrc.models.held_teacher import (
    HeldLinear,
    fill_store,
    held_bytes,
    held_matrices,
    held_matrices_of,
    held_weights,
    hold_teacher,
    take_pieces,
)
from lrc.models.layer_store import LayerStore
from lrc.models.pair_model import PairModel
from lrc.models.start import fill_start
from lrc.models.weight_formats import pack, packed_bytes, restore
from lrc.teacher_config import TeacherWeightsConfig
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.test_pair import VARIANTS, batch, counts_of, fill_random, gradients, make_pair
from tests.models.tiny_configs import SIZES
from tests.tiny import tiny_teacher

CPU = torch.device("cpu")


def held_and_plain(
    teacher: Any, settings: TeacherWeightsConfig, *, fetches: bool = False
) -> tuple[nn.Module, nn.Module, LayerStore]:
    """A held copy of a teacher, and a plain one that has the restored matrices; `fetches`: offloaded, on the CPU."""
    held, plain = copy.deepcopy(teacher), copy.deepcopy(teacher)
    architecture = discover(teacher.config)
    store = LayerStore(CPU, bring=torch.clone if fetches else None)
    for names in held_matrices(teacher, architecture):
        for name in names:
            parameter = plain.get_parameter(name)
            parameter.data = restore(pack(parameter.data, settings.format))
    fill_store(store, held, architecture, settings)
    return held, plain, store


def filled_pair(teacher: nn.Module, variant: Variant = VARIANTS[0], **objective: Any) -> PairModel:
    pair = make_pair(teacher, 16, variant, **objective)
    fill_random(pair)
    return pair


@pytest.mark.parametrize(
    ("fetches", "checkpointing"),
    [(False, "none"), (True, "none"), (True, "selective"), (True, "layer")],
    ids=["here", "offloaded", "selective", "recomputed"],
)
@pytest.mark.parametrize(("family", "format"), [("llama", "int8"), ("qwen2", "nf4"), ("gemma3_text", "int8")])
def test_losses_and_gradients_are_those_of_the_restored_weights(
    family: str, format: Any, fetches: bool, checkpointing: Checkpointing
) -> None:
    teacher = tiny_teacher(family)
    held, plain, _ = held_and_plain(teacher, TeacherWeightsConfig(format=format), fetches=fetches)
    inputs = batch()
    pairs = [filled_pair(model, lm_weight=0.5) for model in (held, plain)]
    for pair in pairs:
        pair.set_activation_checkpointing(checkpointing)
    counts = counts_of(inputs[1], inputs[2])
    found, expected = (pair(*inputs, counts) for pair in pairs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    ours, theirs = (gradients(pair, *inputs) for pair in pairs)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name)
    unpacked = filled_pair(teacher, lm_weight=0.5)(*inputs, counts).objective  # and the format does change something
    assert abs(float((unpacked - found.objective).detach())) > 1e-5


@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
@pytest.mark.parametrize("space", ["student", "teacher"])
def test_every_variant_and_the_published_clone_point_agree_too(space: Any, variant: Variant) -> None:
    """In teacher space the teacher's own writer runs on the student's activations, and hands a gradient on."""
    held, plain, _ = held_and_plain(tiny_teacher("qwen2"), TeacherWeightsConfig(format="int8"))
    inputs = batch()
    ours, theirs = (
        gradients(filled_pair(model, variant, attention_output_space=space), *inputs) for model in (held, plain)
    )
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_native_weights_from_elsewhere_change_nothing() -> None:
    held, plain, store = held_and_plain(tiny_teacher("llama"), TeacherWeightsConfig(offload="cpu"), fetches=True)
    inputs = batch()
    ours, theirs = (gradients(filled_pair(model), *inputs) for model in (held, plain))
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()), msg=name)
    assert store.num_brought > 0


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_the_calibrated_start_and_the_held_out_measure_run_on_a_held_teacher(format: Any) -> None:
    settings = TeacherWeightsConfig(format=format)
    held, plain, store = held_and_plain(tiny_teacher("gemma3_text"), settings, fetches=True)
    batches = [batch(2, 16, seed)[0] for seed in range(4)]
    reports, measures = [], []
    for model in (held, plain):
        pair = make_pair(model, 16)
        reports.append(fill_start(pair, model, StartConfig(tokens=128), batches, seed=0))
        measures.append(measure_pair(pair.eval(), [batch(2, 12, 9)[:2]]).summary())
    assert reports[0].layer_errors == pytest.approx(reports[1].layer_errors, rel=1e-3)
    assert measures[0] == pytest.approx(measures[1], rel=1e-3)
    assert store.num_brought > 0


def test_held_matrices_are_nobody_s_parameters_or_buffers() -> None:
    teacher = tiny_teacher("qwen2")
    names = {name for layer in held_matrices(teacher, discover(teacher.config)) for name in layer}
    assert names == {
        f"model.layers.{layer}.{module}.weight"
        for layer in range(2)
        for module in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{word}_proj" for word in ("gate", "up", "down")),
        )
    }
    held, _, _ = held_and_plain(teacher, TeacherWeightsConfig(format="int8"))
    pair = filled_pair(held)
    assert set(held_weights(held)) == names
    left = {name for name, _ in teacher.named_parameters()} - names
    assert {name for name, _ in held.named_parameters()} == left
    assert "model.layers.0.self_attn.q_proj.bias" in left
    assert all(value.dtype.is_floating_point for value in (*pair.parameters(), *pair.buffers()))
    assert isinstance(held.get_submodule("model.layers.1.mlp.up_proj"), HeldLinear)


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_a_layer_without_any_parameter_left_keeps_its_dtype(format: Any) -> None:
    """OLMo's norms have no gain, so its held layers have only their matrices to tell the dtype."""
    config = OlmoConfig(**SIZES | {"hidden_size": 64, "num_attention_heads": 4})
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    held, _, _ = held_and_plain(teacher, TeacherWeightsConfig(format=format))
    pair = PairModel(held, hidden_size=32, variant=Variant(), objective=ObjectiveConfig())
    assert not list(pair.layers[0].teacher.parameters())
    assert {tensor.dtype for tensor in pair.layers[0].student_tensors().values()} == {torch.bfloat16}
    take_pieces(pair)  # now its only parameters are bytes and scales
    assert {tensor.dtype for tensor in pair.layers[0].student_tensors().values()} == {torch.bfloat16}


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_layers_take_their_packed_pieces_out_of_the_store(format: Any) -> None:
    held, _, store = held_and_plain(tiny_teacher("qwen2"), TeacherWeightsConfig(format=format))
    pair, inputs = filled_pair(held), batch()
    num_bytes, expected = store.num_bytes, gradients(pair, *inputs)
    trained, before = set(pair.trained().values()), set(pair.parameters())
    take_pieces(pair)
    assert store.num_bytes == 0
    taken = [parameter for parameter in pair.parameters() if parameter not in before]
    assert sum(parameter.nbytes for parameter in taken) == num_bytes
    assert not any(parameter.requires_grad for parameter in taken)
    assert set(pair.trained().values()) == trained == set(pair.stored().values())
    assert all(torch.equal(found, expected[name]) for name, found in gradients(pair, *inputs).items())
    for layer in range(2):  # it is the parameters at that moment that are read
        part = held.get_submodule(f"model.layers.{layer}.mlp.up_proj")
        assert isinstance(part, HeldLinear)
        assert part.pieces is not None
        part.pieces[1] = nn.Parameter(2 * part.pieces[1], requires_grad=False)
    assert not any(torch.equal(found, expected[name]) for name, found in gradients(pair, *inputs).items())


def test_no_whole_matrix_waits_for_the_backward_pass() -> None:
    """Neither merge nor the teacher's products keep one; a merge of plain tensors would keep each."""
    held, _, _ = held_and_plain(tiny_teacher("llama", intermediate_size=61), TeacherWeightsConfig(format="int8"))
    saved: list[tuple[int, ...]] = []
    pair, inputs = filled_pair(held), batch()

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pair(*inputs, counts_of(inputs[1], inputs[2]))
    shapes = {tuple(w.store.fetch(w.layer, w.name).shape) for w in held_weights(held).values()}
    assert (61, 32) in shapes
    assert saved
    assert not shapes & set(saved)


def test_the_store_holds_what_is_counted() -> None:
    teacher = tiny_teacher("llama")
    for format in ("native", "int8", "nf4"):
        settings = TeacherWeightsConfig(format=format)
        names = [name for layer in held_matrices(teacher, discover(teacher.config)) for name in layer]
        expected = sum(
            packed_bytes(tuple(teacher.get_parameter(n).shape), torch.float32, settings.format) for n in names
        )
        held, _, store = held_and_plain(teacher, settings)
        assert store.num_bytes == expected
        rest = sum(parameter.nbytes for parameter in held.parameters())
        assert held_bytes(teacher, discover(teacher.config), settings) == rest + expected


def test_without_a_gpu_nothing_is_offloaded() -> None:
    teacher = tiny_teacher("llama")
    store = hold_teacher(teacher, discover(teacher.config), TeacherWeightsConfig(offload="cpu"), CPU)
    assert not store.is_offloaded
    assert teacher.model.layers[0].mlp.up_proj.held.device == CPU


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_stacked_experts_are_refused_by_name(family: str) -> None:
    config = FAMILY_CONFIGS[family]()
    with pytest.raises(ConfigError, match=r"stacked experts.*found model\.layers\.[01]\.mlp\..*fsdp2"):
        held_matrices_of(config, discover(config))
