"""Checkpoint names: the original code's tensors in each variant, and what `lrc_config.json` must hold."""

import json
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from lrc.clone.sites import Variant
from lrc.config import Recipe, StudentConfig, TrainConfig
from lrc.data_config import DataConfig
from lrc.errors import CheckpointError
from lrc.models.checkpoint import (
    LRC_CONFIG,
    checkpoint_facts,
    from_original,
    is_original,
    read_facts,
    variant_of,
    versions,
)

Sharing = Literal["all", "io"]

D_TEACHER, D_STUDENT, NUM_LAYERS = 7, 4, 2
VARIANTS = list(product(("all", "io"), ("all", "io"), (False, True)))
each_variant = pytest.mark.parametrize(("attention", "ffn", "tied"), VARIANTS)


def original_checkpoint(attention: Sharing, ffn: Sharing, tied: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Make what the original code saves for a variant, and the same in our names, all as `[d_T, d_S]`.

    Stored `[d_T, d_S]`: zoom_q, zoom_k, zoom_v, attention's zoom_up, and the FFN's zoom_up where gate and up share it.
    All others are stored `[d_S, d_T]`.
    """
    generator = torch.Generator().manual_seed(0)
    original: dict[str, Tensor] = {}
    ours: dict[str, Tensor] = {}

    def projection(original_name: str, our_name: str, *, stored_as: tuple[int, int]) -> None:
        value = torch.randn(D_TEACHER, D_STUDENT, generator=generator)
        original[original_name] = value if stored_as == (D_TEACHER, D_STUDENT) else value.T.contiguous()
        assert original[original_name].shape == stored_as
        ours[f"projections.{our_name}"] = value

    def gain(original_name: str, our_name: str) -> None:
        original[original_name] = ours[f"gains.{our_name}"] = torch.randn(D_STUDENT, generator=generator)

    as_used, transposed = (D_TEACHER, D_STUDENT), (D_STUDENT, D_TEACHER)
    for layer in (f"model.layers.{index}" for index in range(NUM_LAYERS)):
        if attention == "all":
            for name in ("q", "k", "v"):
                projection(f"{layer}.self_attn.zoom_{name}.weight", f"{layer}.self_attn.{name}_proj", stored_as=as_used)
        else:
            projection(f"{layer}.self_attn.zoom_up.weight", f"{layer}.self_attn.input", stored_as=as_used)
        projection(f"{layer}.self_attn.zoom_down.weight", f"{layer}.self_attn.o_proj", stored_as=transposed)
        if ffn == "all":
            for name in ("gate", "up"):
                projection(f"{layer}.mlp.zoom_{name}.weight", f"{layer}.mlp.{name}_proj", stored_as=transposed)
        else:
            projection(f"{layer}.mlp.zoom_up.weight", f"{layer}.mlp.input", stored_as=as_used)
        projection(f"{layer}.mlp.zoom_down.weight", f"{layer}.mlp.down_proj", stored_as=transposed)
        gain(f"{layer}.target_input_layernorm.weight", f"{layer}.input_layernorm.weight")
        gain(f"{layer}.target_post_attention_layernorm.weight", f"{layer}.post_attention_layernorm.weight")
    projection("model.zoom.weight", "model.embed_tokens", stored_as=transposed)
    if not tied:
        projection("zoom_down.weight", "lm_head", stored_as=transposed)
    gain("model.target_norm.weight", "model.norm.weight")
    return original, ours


def variant(attention: Sharing, ffn: Sharing, tied: bool) -> Variant:
    return Variant(attention_projections=attention, ffn_projections=ffn, tie_embedding_projection=tied)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].is_contiguous()


@each_variant
def test_every_original_tensor_gets_our_name_and_orientation(attention: Sharing, ffn: Sharing, tied: bool) -> None:
    original, ours = original_checkpoint(attention, ffn, tied)
    found, ignored = from_original(original, variant(attention, ffn, tied))
    assert_equal(found, ours)
    assert ignored == []


@each_variant
def test_what_else_a_checkpoint_holds_is_left_out(attention: Sharing, ffn: Sharing, tied: bool) -> None:
    original, ours = original_checkpoint(attention, ffn, tied)
    teacher = {
        "model.embed_tokens.weight": torch.zeros(9, D_TEACHER),
        "model.layers.0.self_attn.q_proj.weight": torch.zeros(6, D_TEACHER),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(6, D_TEACHER),
        "model.layers.0.input_layernorm.weight": torch.zeros(D_TEACHER),
        "model.norm.weight": torch.zeros(D_TEACHER),
        "lm_head.weight": torch.zeros(9, D_TEACHER),
    }
    training_only = {"model.layers.1.self_attn.zoom_out.weight": torch.zeros(D_STUDENT, D_TEACHER)}
    found, ignored = from_original(teacher | training_only | original, variant(attention, ffn, tied))
    assert_equal(found, ours)
    assert ignored == list(training_only)


def test_a_wrapper_s_prefix_is_dropped() -> None:
    original, ours = original_checkpoint("all", "all", False)
    found, _ = from_original({f"module.{name}": tensor for name, tensor in original.items()}, Variant())
    assert_equal(found, ours)


def test_a_head_s_projection_in_a_tied_checkpoint_is_passed_over() -> None:
    original, ours = original_checkpoint("all", "all", True)
    copied = original | {"zoom_down.weight": original["model.zoom.weight"]}
    found, _ = from_original(copied, variant("all", "all", True))
    assert_equal(found, ours)


def test_a_head_s_own_projection_is_not_dropped_unseen() -> None:
    original, _ = original_checkpoint("all", "all", False)
    with pytest.raises(CheckpointError, match=r"but this checkpoint has two: .* --tie-word-emb-proj 0"):
        from_original(original, variant("all", "all", True))


def test_layers_of_two_digits_keep_their_number() -> None:
    value = torch.randn(D_TEACHER, D_STUDENT)
    found, _ = from_original({"model.layers.31.self_attn.zoom_q.weight": value}, Variant())
    assert list(found) == ["projections.model.layers.31.self_attn.q_proj"]


@each_variant
def test_an_original_checkpoint_is_told_from_ours(attention: Sharing, ffn: Sharing, tied: bool) -> None:
    original, ours = original_checkpoint(attention, ffn, tied)
    assert is_original(set(original))
    assert not is_original(set(ours))


@pytest.mark.parametrize("name", ["model.layers.0.mlp.zoom_up.weight", "zoom_down.weight", "model.target_norm.weight"])
def test_one_tensor_of_the_original_code_is_enough_to_tell(name: str) -> None:
    assert is_original({"model.norm.weight", name})


# ---- lrc_config.json


def recipe() -> Recipe:
    return Recipe(
        run="runs/x",
        teacher="owner/model",
        student=StudentConfig(hidden_size=24, ffn_projections="io"),
        data=DataConfig(train="train.jsonl"),
        train=TrainConfig(max_steps=9, tags=("a", "b")),
    )


def facts() -> dict[str, Any]:
    return checkpoint_facts(recipe(), teacher_hash="abc", d_teacher=32, compute_dtype="float32", step=5, tokens=70)


def test_a_checkpoint_says_what_it_was_made_from(tmp_path: Path) -> None:
    (tmp_path / LRC_CONFIG).write_text(json.dumps(facts()))
    found = read_facts(tmp_path)
    assert found is not None
    expected = {
        "teacher": "owner/model",
        "teacher_hash": "abc",
        "d_teacher": 32,
        "d_student": 24,
        "step": 5,
        "tokens": 70,
    }
    assert {name: found[name] for name in expected} == expected
    assert StudentConfig(**found["student"]) == recipe().student
    assert found["recipe"]["train"]["tags"] == ["a", "b"]
    assert found["versions"] == versions()


def test_a_folder_without_facts_has_none(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({name: value for name, value in facts().items() if name != "teacher_hash"}),
        json.dumps({name: value for name, value in facts().items() if name != "teacher"}),
        json.dumps(facts() | {"teacher_hash": ""}),
        json.dumps(facts() | {"student": {"hidden_size": 24, "zoom": 1}}),
        json.dumps(facts() | {"student": 5}),
    ],
)
def test_damaged_facts_are_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / LRC_CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        read_facts(tmp_path)
    assert str(tmp_path / LRC_CONFIG) in str(caught.value)


@pytest.mark.parametrize(("attention", "ffn", "tied"), VARIANTS)
def test_a_recipe_s_student_names_its_variant(attention: Sharing, ffn: Sharing, tied: bool) -> None:
    student = StudentConfig(
        hidden_size=4, attention_projections=attention, ffn_projections=ffn, tie_embedding_projection=tied
    )
    assert variant_of(student) == variant(attention, ffn, tied)


def test_versions_name_what_decides_a_run_s_numbers() -> None:
    found = versions()
    assert set(found) >= {"python", "lrc", "torch", "transformers", "accelerate", "safetensors"}
    assert found["torch"] == torch.__version__


@pytest.mark.parametrize(("said", "meant"), [(True, "outputs"), (False, "none"), ("mlp", "mlp")])
def test_a_correction_by_yes_or_no_is_named(tmp_path: Path, said: object, meant: str) -> None:
    (tmp_path / LRC_CONFIG).write_text(json.dumps(facts() | {"student": {"hidden_size": 24, "correction": said}}))
    found = read_facts(tmp_path)
    assert found is not None
    assert found["student"] == {"hidden_size": 24, "correction": meant}
