"""The merge plan names the stock student's tensors and the pair's trained ones, and refuses a foreign checkpoint."""

import re
from itertools import product

import pytest
import torch
from torch import Tensor

from lrc.clone.sites import Variant
from lrc.errors import CheckpointError
from lrc.models.discovery import discover
from lrc.models.merge_plan import MergePlan, check_trained, merge_plan, student_tensor
from lrc.models.student import student_config
from tests.models.stock_student import stock_student
from tests.models.test_pair import VARIANTS, fill_random, make_pair
from tests.models.tiny_configs import FAMILIES, tiny_config
from tests.tiny import tiny_teacher

EVERY_VARIANT = [
    Variant(attention_projections=attention, ffn_projections=ffn, tie_embedding_projection=shared)
    for attention, ffn, shared in product(("all", "io"), ("all", "io"), (False, True))
]


def zeros(plan: MergePlan) -> dict[str, Tensor]:
    """Trained tensors of the plan's names and the tiny pair's sizes."""
    return {name: torch.zeros((32, 16) if name.startswith("projections.") else 16) for name in plan.trained}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_the_stock_student_s_for_every_variant(family: str, tied: bool) -> None:
    teacher = tiny_teacher(family, tie_word_embeddings=tied)
    theirs = dict(teacher.named_parameters(remove_duplicate=False))
    architecture = discover(teacher.config)
    configs = {is_one: student_config(teacher.config, 16, tied=is_one) for is_one in (True, False)}
    students = {is_one: type(teacher)(config) for is_one, config in configs.items()}
    for variant in EVERY_VARIANT:
        plan = merge_plan(architecture, variant)
        stock = dict(students[tied and variant.tie_embedding_projection].named_parameters())
        assert sorted(plan.names) == sorted(stock), variant
        trained = zeros(plan)
        for name in plan.names:
            assert student_tensor(plan, name, theirs[name], trained).shape == stock[name].shape, (variant, name)


@pytest.mark.parametrize("variant", VARIANTS, ids=["all", "io", "tied-projection"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_the_plainly_merged_ones_and_merged_in_float32(family: str, variant: Variant) -> None:
    teacher = tiny_teacher(family, tie_word_embeddings=False).bfloat16()
    pair = make_pair(teacher, 16, variant)
    fill_random(pair)
    plan = merge_plan(pair.architecture, variant)
    assert plan.trained == set(pair.trained())
    theirs = dict(teacher.named_parameters())
    found = {name: student_tensor(plan, name, theirs[name], dict(pair.trained())) for name in plan.names}
    for name, tensor in found.items():
        assert tensor.dtype == (torch.bfloat16 if name in plan.inherited else torch.float32), name
    for name, expected in stock_student(pair, teacher.float()).named_parameters():
        torch.testing.assert_close(found[name].float(), expected, rtol=0, atol=1e-5, msg=name)


def test_a_writer_s_bias_is_merged_with_its_writer_s_projection_and_a_reader_s_inherited() -> None:
    plan = merge_plan(discover(tiny_config("llama", attention_bias=True, mlp_bias=True)), Variant())
    for writer in ("model.layers.1.self_attn.o_proj", "model.layers.0.mlp.down_proj"):
        assert plan.merges[f"{writer}.weight"] == (f"projections.{writer}", 0)
        assert plan.merges[f"{writer}.bias"] == (f"projections.{writer}", 0)
    assert {"model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.up_proj.bias"} <= set(plan.inherited)
    bias, projection = torch.arange(3.0), torch.arange(6.0).view(3, 2)
    name = "model.layers.0.mlp.down_proj.bias"
    merged = student_tensor(plan, name, bias, {"projections.model.layers.0.mlp.down_proj": projection})
    assert torch.equal(merged, torch.tensor([10.0, 13.0]))  # 1 * [2, 3] + 2 * [4, 5]


def planned() -> tuple[MergePlan, dict[str, Tensor]]:
    plan = merge_plan(discover(tiny_config("llama")), Variant())
    return plan, zeros(plan)


def test_the_plan_s_own_tensors_pass() -> None:
    plan, trained = planned()
    check_trained(plan, trained, 32, 16)


def test_missing_tensors_are_named_and_counted() -> None:
    plan, trained = planned()
    for name in ("projections.lm_head", "gains.model.norm.weight"):
        del trained[name]
    with pytest.raises(CheckpointError, match=r"lacks gains\.model\.norm\.weight \(2 missing, 0 left over\)"):
        check_trained(plan, trained, 32, 16)


def test_left_over_tensors_are_named_and_counted() -> None:
    plan, trained = planned()
    trained["projections.model.layers.2.mlp.up_proj"] = torch.zeros(32, 16)
    with pytest.raises(
        CheckpointError, match=r"has projections\.model\.layers\.2\.mlp\.up_proj, .*\(0 missing, 1 left"
    ):
        check_trained(plan, trained, 32, 16)


@pytest.mark.parametrize("variant", EVERY_VARIANT[1:], ids=str)
def test_a_checkpoint_of_another_variant_is_refused(variant: Variant) -> None:
    _, trained = planned()
    with pytest.raises(CheckpointError, match="attention, ffn or tie settings"):
        check_trained(merge_plan(discover(tiny_config("llama")), variant), trained, 32, 16)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("projections.lm_head", [16, 32], [32, 16]),
        ("projections.model.layers.0.mlp.up_proj", [32, 17], [32, 16]),
        ("projections.model.embed_tokens", [32], [32, 16]),
        ("gains.model.norm.weight", [32], [16]),
        ("gains.model.norm.weight", [16, 1], [16]),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(name: str, shape: list[int], wanted: list[int]) -> None:
    plan, trained = planned()
    trained[name] = torch.zeros(shape)
    message = f"The checkpoint's {name} must be {wanted}, found {shape}."
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        check_trained(plan, trained, 32, 16)
