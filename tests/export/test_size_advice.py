"""What serves or quantises badly is said with a reason, and the sizes proposed are the nearest that don't."""

from typing import Any

import pytest
from transformers import LlamaConfig, MambaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from lrc.export.size_advice import demands_multiple_of_heads, first_misfit, good_sizes, row_lengths, size_advice

LLAMA_3B = LlamaConfig(
    hidden_size=3072, intermediate_size=8192, num_attention_heads=24, num_key_value_heads=8, head_dim=128
)
QWEN_3B = Qwen2Config(hidden_size=2048, intermediate_size=11008, num_attention_heads=16, num_key_value_heads=2)


def test_a_published_size_that_is_good_is_called_good() -> None:
    assert size_advice(LLAMA_3B, 1536) == ["hidden size 1536 serves and quantises well"]


def test_a_published_size_that_is_not_gets_its_reason_and_its_neighbours() -> None:
    assert size_advice(QWEN_3B, 1200) == [  # 1200 = 37.5 x 32
        "hidden size 1200 is no multiple of 32: no GGUF block fits: llama-quantize's Q4_K_M and the converter's Q8_0 "
        "keep these tensors in f16; lrc export refuses q4_k_m, q5_0 and q8_0",
        "nearest good hidden sizes: 1024 and 1280 (multiples of 256), 1152 and 1216 (multiples of 64), "
        "1184 (a multiple of 32)",
    ]


@pytest.mark.parametrize(
    ("length", "misfit"), [(256, None), (512, None), (192, 256), (96, 64), (320, 256), (100, 32), (16, 32)]
)
def test_the_first_block_that_does_not_fit(length: int, misfit: int | None) -> None:
    assert first_misfit(length) == misfit


def test_sizes_that_the_class_refuses_are_not_proposed() -> None:
    assert good_sizes(LLAMA_3B, 1000) == {256: [768, 1536], 64: [960, 1152], 32: [1056]}
    text = size_advice(LLAMA_3B, 1000)
    assert text[0] == "hidden size 1000 is no multiple of the 24 heads: llama refuses it"
    for sizes in good_sizes(LLAMA_3B, 1000).values():
        assert all(size % 24 == 0 for size in sizes)


def test_no_size_at_or_above_the_teachers_is_proposed() -> None:
    assert good_sizes(QWEN_3B, 2040)[256] == [1792]
    assert good_sizes(QWEN_3B, 20) == {256: [256], 64: [64], 32: [32]}
    tiny = Qwen2Config(hidden_size=32, intermediate_size=256, num_attention_heads=4)
    assert size_advice(tiny, 20)[1] == "nearest good hidden sizes: none below the teacher's"


@pytest.mark.parametrize(("make", "demands"), [(LlamaConfig, True), (Qwen2Config, False), (Qwen3Config, False)])
def test_which_class_wants_a_multiple_of_the_heads_is_found_by_trial(make: Any, demands: bool) -> None:
    assert demands_multiple_of_heads(make(num_attention_heads=8, num_key_value_heads=4)) is demands
    assert demands_multiple_of_heads(make(num_attention_heads=1, num_key_value_heads=1)) is False


def test_sizes_that_the_student_inherits_are_said_too() -> None:
    config = Qwen2Config(hidden_size=896, intermediate_size=4864, num_attention_heads=14, num_key_value_heads=2)
    assert size_advice(config, 512) == [
        "heads x head size 896 is the teacher's, and no multiple of 256: "
        "llama-quantize's Q4_K_M keeps these tensors in Q5_0 or Q8_0, which are larger; lrc export refuses q4_k_m",
    ]
    config.intermediate_size = 4870
    assert any(
        line.startswith("FFN width 4870 is the teacher's, and no multiple of 32") for line in size_advice(config, 512)
    )


def test_experts_count_and_a_model_without_attention_has_no_heads() -> None:
    experts = Qwen3MoeConfig(moe_intermediate_size=48).to_dict()
    assert row_lengths(experts, head=128)["expert width"] == 48
    assert row_lengths({"hidden_size": 64}, head=None) == {"hidden size": 64}
    assert size_advice(MambaConfig(hidden_size=1024), 512) == ["hidden size 512 serves and quantises well"]
