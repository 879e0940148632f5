"""The student's config: only the width changes, and a width that the class refuses is answered with near ones."""

import copy

import pytest
import torch

from lrc.errors import ConfigError
from lrc.models.student import empty_student, head_size, resized_config, student_config
from tests.models.tiny_configs import FAMILIES, tiny_config

each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
@pytest.mark.parametrize("tied", [True, False])
def test_width_and_tying_change_and_nothing_else(family: str, tied: bool) -> None:
    teacher = tiny_config(family, tie_word_embeddings=not tied)
    before = copy.deepcopy(teacher.to_dict())
    student = student_config(teacher, 24, tied=tied)
    assert type(student) is type(teacher)
    assert student.to_dict() == before | {"hidden_size": 24, "tie_word_embeddings": tied}
    assert teacher.to_dict() == before


@each_family
def test_the_student_has_the_teacher_s_heads_ffn_depth_and_vocabulary(family: str) -> None:
    teacher = tiny_config(family, tie_word_embeddings=False)
    students = {size: empty_student(student_config(teacher, size, tied=False)) for size in (24, 32)}
    narrow, wide = (dict(model.named_parameters()) for model in students.values())
    assert narrow.keys() == wide.keys()
    assert all(parameter.is_meta for parameter in narrow.values())
    layer = "model.layers.1."
    assert narrow[f"{layer}self_attn.q_proj.weight"].shape == (4 * 6, 24)
    assert narrow[f"{layer}self_attn.k_proj.weight"].shape == (2 * 6, 24)
    assert narrow[f"{layer}self_attn.o_proj.weight"].shape == (24, 4 * 6)
    assert narrow[f"{layer}mlp.gate_proj.weight"].shape == (56, 24)
    assert narrow[f"{layer}mlp.down_proj.weight"].shape == (24, 56)
    assert narrow["lm_head.weight"].shape == narrow["model.embed_tokens.weight"].shape == (48, 24)
    assert narrow["model.norm.weight"].shape == (24,)


@each_family
def test_an_empty_student_has_real_buffers_that_do_not_depend_on_its_width(family: str) -> None:
    teacher = tiny_config(family)
    narrow, wide = (dict(empty_student(student_config(teacher, size, tied=True)).named_buffers()) for size in (24, 32))
    rotary = [name for name in narrow if "inv_freq" in name]
    assert rotary
    for name in rotary:
        assert torch.equal(narrow[name], wide[name])
    assert not any(buffer.is_meta for buffer in narrow.values())


def test_an_empty_student_is_for_inference() -> None:
    assert not empty_student(student_config(tiny_config("llama"), 24, tied=True)).training


@pytest.mark.parametrize(("head_dim", "expected"), [(6, 6), (None, 8)])
def test_a_head_size_that_the_config_leaves_out_follows_from_the_teacher(head_dim: int | None, expected: int) -> None:
    config = tiny_config("qwen2", head_dim=head_dim)
    assert head_size(config) == expected
    resized = resized_config(config, 24, tied=True)
    assert (resized.head_dim, head_size(resized), resized.hidden_size) == (expected, expected, 24)


@each_family
def test_the_teacher_s_own_width_is_allowed_here_for_the_identity_oracle(family: str) -> None:
    assert student_config(tiny_config(family), 32, tied=True).hidden_size == 32


@each_family
@pytest.mark.parametrize("hidden_size", [33, 36, 64])
def test_a_width_above_the_teacher_s_is_refused(family: str, hidden_size: int) -> None:
    with pytest.raises(ConfigError, match=f"at or below the teacher's 32, found {hidden_size}"):
        student_config(tiny_config(family), hidden_size, tied=True)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize(
    ("hidden_size", "nearest"),
    [(26, [24, 28]), (25, [24, 28]), (27, [24, 28]), (30, [24, 28]), (3, [4, 8]), (1, [4, 8])],
)
def test_a_width_that_the_heads_of_a_strict_family_do_not_divide_is_refused_with_the_nearest(
    family: str, hidden_size: int, nearest: list[int]
) -> None:
    # 32 is the teacher's own width, so next to 30 only 28 and 24 are left
    with pytest.raises(ConfigError, match=rf"student\.hidden_size = {hidden_size} does not fit {family}") as caught:
        student_config(tiny_config(family), hidden_size, tied=True)
    assert f"The hidden size ({hidden_size}) is not a multiple of the number of attention heads (4)" in str(
        caught.value
    )
    assert str(caught.value).endswith(f"The nearest sizes that work: {nearest[0]}, {nearest[1]}.")
    for size in nearest:
        assert student_config(tiny_config(family), size, tied=True).hidden_size == size


def test_a_teacher_without_a_fitting_width_says_so() -> None:
    teacher = tiny_config("llama", hidden_size=8, num_attention_heads=8, num_key_value_heads=8)
    with pytest.raises(ConfigError, match="No size near it works"):
        student_config(teacher, 5, tied=True)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families_take_a_width_that_their_heads_do_not_divide(family: str) -> None:
    model = empty_student(student_config(tiny_config(family), 25, tied=False))
    assert dict(model.named_parameters())["model.norm.weight"].shape == (25,)
