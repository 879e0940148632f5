"""Quantising by llama.cpp's kernels, against the gguf library's own arithmetic, and the mixtures of types."""

from pathlib import Path

import numpy as np
import pytest

from lrc.export import ggml_quantise
from lrc.export.ggml_quantise import is_quantised, mixture_type, quantise, quantise_file, takes_more_bits

gguf = pytest.importorskip("gguf")


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def mixed(name: str, *, kind: str = "q4_k_m", layers: int = 32, tied: bool = False, row: int = 256) -> str:
    return mixture_type(name, kind=kind, num_layers=layers, is_tied=tied, row_length=row)


def test_half_of_32_layers_take_more_bits() -> None:
    taken = [layer for layer in range(32) if takes_more_bits(layer, 32)]
    assert taken == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("output.weight", {}, "Q6_K"),
        ("token_embd.weight", {}, "Q4_K"),
        ("token_embd.weight", {"tied": True}, "Q6_K"),
        ("blk.0.attn_v.weight", {}, "Q6_K"),
        ("blk.4.attn_v.weight", {}, "Q4_K"),
        ("blk.6.ffn_down.weight", {}, "Q6_K"),
        ("blk.5.ffn_down.weight", {}, "Q4_K"),
        ("blk.0.attn_q.weight", {}, "Q4_K"),
        ("blk.5.attn_qkv.weight", {}, "Q5_K"),
        ("blk.0.ffn_down.weight", {"kind": "q5_0"}, "Q5_0"),
        ("output.weight", {"kind": "q5_0"}, "Q6_K"),
        ("output.weight", {"kind": "q5_0", "row": 288}, "Q8_0"),
    ],
)
def test_each_matrix_gets_the_type_of_llama_cpps_mixture(name: str, options: dict[str, object], expected: str) -> None:
    assert mixed(name, **options) == expected  # type: ignore[arg-type]


def test_norms_routers_and_vectors_stay_as_they_are() -> None:
    assert is_quantised("blk.0.attn_q.weight", 2)
    assert is_quantised("blk.0.ffn_down_exps.weight", 3)
    assert not is_quantised("blk.0.attn_norm.weight", 2)
    assert not is_quantised("blk.0.ffn_gate_inp.weight", 2)
    assert not is_quantised("blk.0.attn_q.bias", 2)
    assert not is_quantised("output_norm.weight", 1)
    assert not is_quantised("blk.0.ssm_conv1d.weight", 2)
    assert not is_quantised("blk.0.shortconv.conv.weight", 2)
    assert is_quantised("blk.0.shortconv.in_proj.weight", 2)


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0"])
def test_kernels_write_the_bytes_that_the_gguf_library_computes(name: str) -> None:
    pytest.importorskip("xllamacpp")
    kind, rows = gguf.GGMLQuantizationType[name], weights(3, 64)
    packed = quantise(rows, kind, gguf.quant_shape_to_byte_shape(rows.shape, kind))
    np.testing.assert_array_equal(packed, gguf.quants.quantize(rows, kind))


@pytest.mark.parametrize(("name", "error"), [("Q4_K", 0.1), ("Q5_K", 0.05), ("Q6_K", 0.025)])
def test_weights_come_back_nearly(name: str, error: float) -> None:
    pytest.importorskip("xllamacpp")
    kind, rows = gguf.GGMLQuantizationType[name], weights(2, 3, 512)
    packed = quantise(rows, kind, gguf.quant_shape_to_byte_shape(rows.shape, kind))
    back = gguf.quants.dequantize(packed, kind)
    assert np.sqrt(np.mean((back - rows) ** 2)) < error


def test_file_keeps_its_facts_and_gets_its_types(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.add_block_count(1)
    writer.add_file_type(0)
    writer.add_token_list(["a", "b"])
    writer.add_layer_norm_rms_eps(1e-5)
    tensors = {"token_embd.weight": weights(4, 64), "blk.0.attn_norm.weight": weights(64)}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    quantise_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "q5_0", gguf=gguf)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert facts["general.architecture"] == "llama"
    assert facts["general.file_type"] == 8
    assert facts["tokenizer.ggml.tokens"] == ["a", "b"]
    assert facts["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found["token_embd.weight"].tensor_type.name == "Q8_0"  # tied, and 64 is no multiple of 256
    back = gguf.quants.dequantize(found["token_embd.weight"].data, found["token_embd.weight"].tensor_type)
    np.testing.assert_allclose(back, tensors["token_embd.weight"], atol=0.02)
    np.testing.assert_array_equal(found["blk.0.attn_norm.weight"].data, tensors["blk.0.attn_norm.weight"])


def test_without_kernels_the_way_round_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml_quantise, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install xllamacpp, or export f16"):
        quantise(weights(1, 32), 8, (1, 34))
