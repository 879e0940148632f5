"""A projected part: its tensors are all of its twin's, its masters stay float32, its names are the checkpoint's."""

from typing import Any

import pytest
import torch

from lrc.clone.merge import merge
from lrc.clone.sites import Variant, site_of
from lrc.models.discovery import discover
from lrc.models.part import ProjectedPart, part_plan
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import stock_student
from tests.models.test_pair import VARIANTS, fill_random, make_pair
from tests.models.tiny_configs import FAMILIES, tiny_config
from tests.tiny import tiny_teacher

PREFIXES = ["model.embed_tokens.", "model.layers.0.", "model.layers.1.", "model.norm.", "lm_head."]


def filled(family: str, variant: Variant = VARIANTS[0], dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    teacher = tiny_teacher(family, **changes).to(dtype)
    pair = make_pair(teacher, 16, variant)
    fill_random(pair)
    return teacher, pair


@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
@pytest.mark.parametrize("family", FAMILIES)
def test_student_tensors_are_every_tensor_of_the_twin(family: str, variant: Variant) -> None:
    teacher, pair = filled(family, variant, tie_word_embeddings=False)
    stock = stock_student(pair, teacher)
    parts = list(pair.parts())
    assert [part.prefix for part in parts] == PREFIXES
    for part in parts:
        found = part.student_tensors()
        module = stock.get_submodule(part.prefix.removesuffix("."))
        expected = dict(module.named_parameters()) | dict(module.named_buffers())
        assert found.keys() == expected.keys(), part.prefix
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=f"{part.prefix}{name}")


def test_inherited_tensors_are_the_teacher_s_own_and_not_copies() -> None:
    teacher, pair = filled("qwen3")
    layer = pair.layers[1].student_tensors()
    for name in ("self_attn.q_norm.weight", "self_attn.k_norm.weight"):
        assert layer[name] is teacher.model.layers[1].get_parameter(name)


def test_a_writer_s_bias_is_merged_too() -> None:
    teacher, pair = filled("llama", attention_bias=True, mlp_bias=True)
    layer = pair.layers[0]
    found = layer.student_tensors()
    for writer in ("self_attn.o_proj", "mlp.down_proj"):
        expected = layer.parameter(writer).T @ teacher.model.layers[0].get_parameter(f"{writer}.bias")
        torch.testing.assert_close(found[f"{writer}.bias"], expected)
    bias = "self_attn.q_proj.bias"
    assert found[bias] is teacher.model.layers[0].get_parameter(bias)


def test_masters_are_float32_under_a_bfloat16_teacher_and_get_float32_gradients() -> None:
    _, pair = filled("llama", dtype=torch.bfloat16)
    layer = pair.layers[0]
    tensors = layer.student_tensors()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert layer.projection("mlp.up_proj", torch.bfloat16).dtype == torch.bfloat16
    sum(tensor.float().square().sum() for tensor in tensors.values()).backward()
    for name in (*layer.plan.projections, *layer.plan.gains):
        master = layer.parameter(name)
        assert master.dtype == master.grad.dtype == torch.float32, name
        assert float(master.grad.abs().sum()) > 0, name


def with_float32(reader: str, variant: Variant = VARIANTS[0]) -> Any:
    """Make a pair of a bfloat16 teacher that keeps a reader and a norm of its layers in float32."""
    teacher: Any = tiny_teacher("llama").to(torch.bfloat16)
    for layer in teacher.model.layers:
        for name in (reader, "post_attention_layernorm"):
            layer.get_submodule(name).float()
    pair = make_pair(teacher, 16, variant)
    fill_random(pair)
    return pair


@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
def test_each_tensor_is_merged_in_the_dtype_of_the_teachers(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = with_float32("mlp.gate_proj", variant).layers[0]
    teacher = dict(layer.teacher.named_parameters())
    converted: list[tuple[str, torch.dtype]] = []
    convert = ProjectedPart.projection

    def counting(part: ProjectedPart, name: str, dtype: torch.dtype) -> torch.Tensor:
        converted.append((name, dtype))
        return convert(part, name, dtype)

    monkeypatch.setattr(ProjectedPart, "projection", counting)
    found = layer.student_tensors()
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: teacher[name].dtype for name in found}
    assert found["mlp.gate_proj.weight"].dtype == found["post_attention_layernorm.weight"].dtype == torch.float32
    wanted = {(projection, teacher[name].dtype) for name, (projection, _) in layer.plan.merges.items()}
    assert (len(converted), set(converted)) == (len(wanted), wanted)
    for name, (projection, axis) in layer.plan.merges.items():
        expected = merge(teacher[name], layer.parameter(projection).to(teacher[name].dtype), axis)
        assert torch.equal(found[name], expected), name
    sum(tensor.float().square().sum() for tensor in found.values()).backward()
    assert all(layer.parameter(name).grad.dtype == torch.float32 for name in layer.plan.projections)


@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
def test_a_parameter_is_the_master_that_training_sees(variant: Variant) -> None:
    _, pair = filled("gemma3_text", variant)
    trained = pair.trained()
    for index, layer in enumerate(pair.layers):
        for name in layer.plan.projections:
            assert layer.parameter(name) is trained[f"projections.model.layers.{index}.{name}"]
        for name in layer.plan.gains:
            assert layer.parameter(name) is trained[f"gains.model.layers.{index}.{name}"]
    head = "model.embed_tokens" if variant.tie_embedding_projection else "lm_head"
    assert pair.head.parameter("") is trained[f"projections.{head}"]


@pytest.mark.parametrize(("variant", "reader"), [(VARIANTS[0], None), (VARIANTS[1], "input")], ids=["all", "io"])
def test_trained_tensors_have_the_checkpoint_s_names_and_shapes(variant: Variant, reader: str | None) -> None:
    _, pair = filled("llama", variant)
    embedding, layer, _, norm, head = pair.parts()
    attention = [reader] if reader else ["q_proj", "k_proj", "v_proj"]
    ffn = [reader] if reader else ["gate_proj", "up_proj"]
    names = [
        *(f"self_attn.{name}" for name in (*attention, "o_proj")),
        *(f"mlp.{name}" for name in (*ffn, "down_proj")),
    ]
    gains = [f"gains.model.layers.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")]
    assert list(layer.trained()) == [*(f"projections.model.layers.0.{name}" for name in names), *gains]
    assert list(embedding.trained()) == ["projections.model.embed_tokens"]
    assert list(norm.trained()) == ["gains.model.norm.weight"]
    assert list(head.trained()) == ["projections.lm_head"]
    for name, tensor in layer.trained().items():
        assert tensor.shape == ((32, 16) if name.startswith("projections.") else (16,))


def test_a_twin_has_no_values_and_is_nobody_s_parameter() -> None:
    _, pair = filled("llama")
    for part in pair.parts():
        assert all(parameter.is_meta for parameter in part.twin.parameters())
        own = {id(parameter) for parameter in part.parameters()}
        assert not own & {id(parameter) for parameter in part.twin.parameters()}
        wanting = {id(parameter) for parameter in part.parameters() if parameter.requires_grad}
        assert wanting == {id(parameter) for parameter in part.trained().values()}


def test_an_unfilled_part_is_zero() -> None:
    pair = make_pair(tiny_teacher("llama"), 16)
    assert not any(parameter.any() for parameter in pair.trained().values())


def test_layers_of_one_digit_are_not_taken_for_those_of_two() -> None:
    architecture = discover(tiny_config("llama", num_hidden_layers=12))
    plans = [part_plan(architecture, Variant(), 16, f"model.layers.{index}.") for index in (1, 11)]
    assert plans[0] == plans[1]
    assert len(plans[0].merges) == 7
    assert plans[0].merges["mlp.down_proj.weight"] == ("mlp.down_proj", 0)
    assert plans[0].merges["mlp.up_proj.weight"] == ("mlp.up_proj", 1)
    assert plans[0].gains == ("input_layernorm.weight", "post_attention_layernorm.weight")


def test_readers_that_share_an_input_share_one_projection() -> None:
    plan = part_plan(discover(tiny_config("llama")), VARIANTS[1], 16, "model.layers.0.")
    assert plan.projections == ("self_attn.input", "self_attn.o_proj", "mlp.input", "mlp.down_proj")
    assert {plan.merges[f"self_attn.{name}_proj.weight"] for name in "qkv"} == {("self_attn.input", 1)}


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"])
def test_all_that_reads_a_stage_s_input_shares_its_projection(family: str) -> None:
    architecture = discover(FAMILY_CONFIGS[family]())
    plan = part_plan(architecture, VARIANTS[1], 16, "model.layers.1.")
    for stage in architecture.stages[1]:
        tensors = [name for name in plan.merges if site_of(name) in stage.readers]
        assert len(tensors) >= len(stage.readers)
        assert len({plan.merges[name][0] for name in tensors}) == 1


def test_parts_outside_the_layers_have_one_projection_or_gain() -> None:
    architecture = discover(tiny_config("llama", tie_word_embeddings=True))
    for prefix in ("model.embed_tokens.", "lm_head."):
        plan = part_plan(architecture, Variant(), 16, prefix)
        assert (plan.merges, plan.gains, plan.projections) == ({"weight": ("", 1)}, (), ("",))
        assert (plan.d_teacher, plan.d_student) == (32, 16)
    norm = part_plan(architecture, Variant(), 16, "model.norm.")
    assert (norm.merges, norm.gains) == ({}, ("weight",))


def test_a_part_that_moves_takes_the_twins_buffers_along() -> None:
    _, pair = filled("llama")
    part = next(part for part in pair.parts() if part.prefix == "model.layers.0.")
    part.twin.register_buffer("made", torch.ones(3), persistent=False)
    part.to(torch.float64)
    assert part.twin.get_buffer("made").dtype == torch.float64
    assert {parameter.device.type for parameter in part.twin.parameters()} == {"meta"}
