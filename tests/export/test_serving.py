"""The rules say what is known of each engine, and call not known what is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrc.errors import ConfigError
from lrc.export.serving import (
    active_window,
    has_own_head_size,
    read_config_file,
    verdicts,
    window_lost_in_llama_cpp,
)

QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 11008,
    "max_position_embeddings": 32768,
    "sliding_window": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "rope_theta": 1e6,
    "rope_scaling": None,
}
LLAMA = QWEN2 | {"model_type": "llama"}
WINDOW = {
    "use_sliding_window": True,
    "sliding_window": 4096,
    "layer_types": ["full_attention", "sliding_attention"],
}


def answers(values: dict[str, Any], problem: str | None = None) -> dict[str, str]:
    return {verdict.engine: verdict.answer for verdict in verdicts(values, problem)}


def hints(values: dict[str, Any]) -> dict[str, str]:
    return {verdict.engine: verdict.how for verdict in verdicts(values, None)}


def test_a_qwen2_with_its_own_head_size_is_served_by_some_only() -> None:
    found = answers(QWEN2)
    assert found == {
        "transformers 5": "as is",
        "transformers 4.57": "as is",
        "vLLM": "re-express",
        "SGLang": "as is",
        "llama.cpp (GGUF)": "re-express",
        "GGUF Q8_0": "as is",
        "GGUF Q4_K_M": "as is",
        "TGI": "no",
    }
    assert "--as llama" in hints(QWEN2)["vLLM"]
    assert "--hf-overrides" in hints(QWEN2)["vLLM"]
    assert "--as llama" in hints(QWEN2)["llama.cpp (GGUF)"]


@pytest.mark.parametrize("head_dim", [64, None])
def test_a_qwen2_with_ordinary_sizes_is_served_as_it_is(head_dim: int | None) -> None:
    found = answers(QWEN2 | {"head_dim": head_dim})
    assert found["vLLM"] == "as is"
    assert has_own_head_size(QWEN2) is True
    assert has_own_head_size(QWEN2 | {"head_dim": head_dim}) is False


def test_a_sliding_qwen2_can_not_be_a_llama() -> None:
    found = answers(QWEN2 | WINDOW)
    assert found["vLLM"] == "with a flag"
    assert hints(QWEN2 | WINDOW)["vLLM"] == "--model-impl transformers"
    assert found["llama.cpp (GGUF)"] == "no"


def test_a_llama_is_served_as_it_is_unless_its_heads_do_not_divide_it() -> None:
    engines = ("transformers 5", "vLLM", "SGLang", "llama.cpp (GGUF)")
    assert {answers(LLAMA)[engine] for engine in engines} == {"as is"}
    indivisible = answers(LLAMA | {"hidden_size": 1000}, "not a multiple of the heads")
    assert {indivisible[engine] for engine in engines} == {"re-express"}
    assert indivisible["transformers 4.57"] == "as is"


@pytest.mark.parametrize(
    ("rope", "answer"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, "as is"),
        ({"rope_type": "default", "rope_theta": 1e6}, "no"),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}, "no"),
        ({"full_attention": {"rope_type": "default", "rope_theta": 1e4}}, "no"),
    ],
)
def test_without_the_older_keys_transformers_4_turns_wrongly(rope: dict[str, Any], answer: str) -> None:
    values = {name: value for name, value in LLAMA.items() if name not in ("rope_theta", "rope_scaling")}
    assert answers(values | {"rope_parameters": rope})["transformers 4.57"] == answer


def test_gemma_2_needs_a_flag_in_transformers_4() -> None:
    assert hints(LLAMA | {"model_type": "gemma2"})["transformers 4.57"] == "attn_implementation='eager'"


def test_a_family_that_nobody_tried_is_called_not_known() -> None:
    found = answers(LLAMA | {"model_type": "newcomer"}, "no such class")
    for engine in ("transformers 4.57", "vLLM", "SGLang", "llama.cpp (GGUF)", "TGI"):
        assert found[engine] == "not known"
    assert found["transformers 5"] == "no"
    assert hints(LLAMA | {"model_type": "newcomer"})["vLLM"] == "--model-impl transformers"


@pytest.mark.parametrize(
    ("changes", "q8_0", "q4_k_m"),
    [
        ({}, "as is", "as is"),
        ({"hidden_size": 1216}, "as is", "re-express: in part"),  # 38 x 32
        ({"hidden_size": 1200}, "re-express: in part", "re-express: in part"),  # 37.5 x 32
        ({"hidden_size": 1216, "head_dim": 76, "intermediate_size": 992}, "as is", "no"),
        ({"hidden_size": 1200, "head_dim": 75, "intermediate_size": 1000}, "no", "no"),
    ],
)
def test_gguf_types_depend_on_every_row(changes: dict[str, Any], q8_0: str, q4_k_m: str) -> None:
    found = {verdict.engine: verdict for verdict in verdicts(LLAMA | changes, None)}
    for name, expected in (("GGUF Q8_0", q8_0), ("GGUF Q4_K_M", q4_k_m)):
        answer, _, begins = expected.partition(": ")
        assert found[name].answer == answer
        assert found[name].why.startswith(begins)
        assert ("lrc export refuses" in found[name].why) is (answer != "as is")


@pytest.mark.parametrize(
    ("method", "problem", "answer"),
    [("torchao", None, "as is"), ("awq", None, "not known"), ("torchao", "no such class", "no")],
)
def test_quantised_weights_make_no_gguf_file_and_are_known_to_torchao_alone(
    method: str, problem: str | None, answer: str
) -> None:
    values = LLAMA | {"quantization_config": {"quant_method": method}}
    assert answers(values, problem) == {
        "transformers 5": answer,
        "transformers 4.57": "not known",
        "vLLM": "not known",
        "SGLang": "not known",
        "llama.cpp (GGUF)": "no",
        "GGUF Q8_0": "no",
        "GGUF Q4_K_M": "no",
        "TGI": "not known",
    }
    assert hints(values)["llama.cpp (GGUF)"] == "export the student it came from"
    assert [verdict.engine for verdict in verdicts(values, None)] == list(answers(LLAMA))


def test_a_model_without_attention_is_judged_too() -> None:
    values = {"model_type": "mamba", "hidden_size": 512}
    assert answers(values)["vLLM"] == "not known"
    assert answers(values)["GGUF Q4_K_M"] == "as is"


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": 4096}, 4096),
        ({"sliding_window": 32768}, None),
        ({"sliding_window": 4096, "use_sliding_window": False}, None),
        ({"sliding_window": 4096, "layer_types": ["full_attention"]}, None),
        (WINDOW, 4096),
        ({}, None),
    ],
)
def test_a_window_counts_where_a_layer_uses_it_within_the_context(changes: dict[str, Any], window: int | None) -> None:
    assert active_window(QWEN2 | changes) == window


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ("[]", "no model_type and no hidden_size"),
        (json.dumps({"model_type": "bert"}), "no hidden_size"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_config_file(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "lost"),
    [
        ("mistral", {"sliding_window": 4096}, 4096),
        ("mistral", {"sliding_window": 32768}, None),
        ("qwen3", WINDOW, 4096),
        ("olmo3", WINDOW, None),
        ("gemma2", {"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}, None),
        ("gemma2", WINDOW, 4096),
        ("gpt_oss", {"sliding_window": 4096, "layer_types": ["full_attention"] * 2}, None),
    ],
)
def test_a_window_is_lost_where_llama_cpp_has_none_or_at_other_layers(
    kind: str, changes: dict[str, Any], lost: int | None
) -> None:
    values = LLAMA | {"model_type": kind} | changes
    assert window_lost_in_llama_cpp(values) == lost
    assert (answers(values)["llama.cpp (GGUF)"] == "no") is (lost is not None)
