"""Students that llama.cpp would load and compute otherwise, or whose tokenizer is damaged, are refused at once."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, FalconH1Config, Lfm2Config

from lrc.errors import CheckpointError, ConfigError
from lrc.export import gguf as gguf_export
from lrc.export.gguf import check_gguf
from tests.export.bpe_student import bpe_student, save_bpe_tokenizer

EVEN = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
EVEN |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
HYBRIDS = {
    "falcon_h1": lambda: FalconH1Config(
        **EVEN, head_dim=32, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8
    ),
    "lfm2": lambda: Lfm2Config(**EVEN, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"]),
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {}),
        ("gemma3_text", {"query_pre_attn_scalar": 6, "layer_types": ["full_attention", "sliding_attention"]}),
    ],
)
def test_a_window_that_llama_cpp_does_not_have_is_refused(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    student = bpe_student(tmp_path / "student", family, sliding_window=100, **changes)
    said = rf"its {family} does not at the layers .* that look back 100 tokens only, out of a context of 512; .* vLLM"
    with pytest.raises(ConfigError, match=said):
        check_gguf(student, "f16")
    short = bpe_student(tmp_path / "short", family, sliding_window=100, max_position_embeddings=100, **changes)
    check_gguf(short, "f16")


def test_a_window_that_llama_cpp_has_is_taken(tmp_path: Path) -> None:
    sliding = {"sliding_window": 100, "layer_types": ["sliding_attention"] * 2, "query_pre_attn_scalar": 6}
    check_gguf(bpe_student(tmp_path / "student", "gemma3_text", **sliding), "f16")


@pytest.mark.parametrize("family", HYBRIDS)
@pytest.mark.parametrize("kind", ["q8_0", "q5_0"])
def test_a_convolution_has_no_rows_to_quantise(
    tmp_path: Path, kind: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_export, "has_llama_cpp", lambda: True)
    save_bpe_tokenizer(tmp_path)
    model = AutoModelForCausalLM.from_config(HYBRIDS[family]())
    kernels = [tensor for name, tensor in model.named_parameters() if "conv" in name and tensor.dim() == 3]
    assert kernels
    assert all(kernel.shape[-1] % 32 for kernel in kernels)
    model.save_pretrained(tmp_path)
    check_gguf(tmp_path, kind)


def test_a_damaged_tokenizer_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    student = bpe_student(tmp_path / "student")
    (student / "tokenizer.json").write_text('{"model": {"type": ')
    with pytest.raises(CheckpointError, match=r"The tokenizer of .* can't be loaded"):
        check_gguf(student, "f16")
