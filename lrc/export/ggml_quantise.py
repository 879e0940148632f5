"""Quantises a float32 GGUF file by llama.cpp's kernels: `python -m lrc.export.ggml_quantise CONVERTER IN OUT KIND`.

The converter writes nothing below 8 bits. The kernels lie in the wheel `xllamacpp` (`ggml_quantize_chunk`, called
through ctypes, one matrix at a time); which type each matrix gets follows llama.cpp's own mixtures, written down here.
"""

import ctypes
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

FILE_TYPES = {"q5_0": 8, "q4_k_m": 15}
"""llama.cpp's numbers of the mixtures (`general.file_type`)."""
KEPT = ("_norm.weight", "ffn_gate_inp", "ssm_conv1d", "shortconv.conv.weight")
"""Parts of the GGUF names of tensors that llama.cpp never quantises."""


def mixture_type(name: str, *, kind: str, num_layers: int, is_tied: bool, row_length: int) -> str:
    """Return the type of a matrix: Q5_0 or Q4_K, and better ones where llama.cpp's mixtures take them.

    Output and tied embedding get Q6_K. In `q4_k_m`, so do the value and FFN-down projections of the first and last
    eighth of the layers and of every third layer between; a fused q/k/v gets Q5_K. A Q6_K whose rows are no multiple of
    256 becomes Q8_0.

    Args:
        name: The GGUF name.
        kind: `q5_0` or `q4_k_m`.
        num_layers: Blocks of the model.
        is_tied: Whether the embedding is the head too.
        row_length: Weights in a row.
    """
    chosen = "Q5_0" if kind == "q5_0" else "Q4_K"
    if name == "output.weight" or (is_tied and name == "token_embd.weight"):
        chosen = "Q6_K"
    elif kind == "q4_k_m" and name.startswith("blk."):
        layer = int(name.split(".")[1])
        if ("attn_v.weight" in name or "ffn_down" in name) and takes_more_bits(layer, num_layers):
            chosen = "Q6_K"
        elif "attn_qkv.weight" in name:
            chosen = "Q5_K"
    return "Q8_0" if chosen == "Q6_K" and row_length % 256 else chosen


def takes_more_bits(layer: int, num_layers: int) -> bool:
    """Whether a layer is among the first or last eighth, or is every third one between."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def is_quantised(name: str, num_axes: int) -> bool:
    """Whether a tensor is a matrix that quantising takes: no norm, no router, no convolution, no bias."""
    return num_axes >= 2 and name.endswith("weight") and not any(part in name for part in KEPT)


def quantise_file(source: Path, target: Path, kind: str, *, gguf: Any) -> None:
    """Write a float32 GGUF file as `kind`, tensor by tensor.

    Args:
        source: The float32 file.
        target: The file to write.
        kind: A key of `FILE_TYPES`.
        gguf: The gguf library.
    """
    reader = gguf.GGUFReader(source)
    architecture = _value(reader, "general.architecture")
    writer = gguf.GGUFWriter(target, arch=architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kinds = field.types
        sub_type = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kinds[0], sub_type=sub_type)
    writer.add_file_type(FILE_TYPES[kind])
    if "general.quantization_version" not in reader.fields:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    names = {tensor.name for tensor in reader.tensors}
    num_layers, is_tied = int(_value(reader, f"{architecture}.block_count")), "output.weight" not in names
    types = {}
    for tensor in reader.tensors:
        shape = tensor.data.shape
        if not is_quantised(tensor.name, len(shape)):
            writer.add_tensor_info(tensor.name, shape, tensor.data.dtype, tensor.data.nbytes)
            continue
        chosen = gguf.GGMLQuantizationType[
            mixture_type(tensor.name, kind=kind, num_layers=num_layers, is_tied=is_tied, row_length=shape[-1])
        ]
        types[tensor.name] = chosen
        packed = gguf.quant_shape_to_byte_shape(shape, chosen)
        writer.add_tensor_info(tensor.name, packed, np.dtype(np.uint8), int(np.prod(packed)), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name in types:
            data = quantise(data, types[tensor.name], gguf.quant_shape_to_byte_shape(data.shape, types[tensor.name]))
        writer.write_tensor_data(data)
    writer.close()


def quantise(weights: np.ndarray, ggml_type: int, packed_shape: tuple[int, ...]) -> np.ndarray:
    """Quantise float32 weights `[..., row]` with `ggml_quantize_chunk`; returns bytes of `packed_shape`."""
    kernels = _ggml()
    rows = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, weights.shape[-1])
    packed = np.empty(packed_shape, dtype=np.uint8)
    written = kernels.ggml_quantize_chunk(
        int(ggml_type), rows.ctypes.data, packed.ctypes.data, 0, rows.shape[0], rows.shape[1], None
    )
    if written != packed.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of a matrix, expected {packed.nbytes}")
    return packed


def _ggml() -> Any:
    spec = find_spec("xllamacpp")
    libraries = sorted(Path(spec.origin).parent.glob("xllamacpp.*")) if spec and spec.origin else []
    for library in libraries:
        if library.suffix not in (".so", ".dylib", ".pyd"):
            continue
        kernels = ctypes.CDLL(str(library))
        if hasattr(kernels, "ggml_quantize_chunk"):
            pointer, size = ctypes.c_void_p, ctypes.c_int64
            kernels.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
            kernels.ggml_quantize_chunk.restype = ctypes.c_size_t
            return kernels
    raise RuntimeError(
        "this type needs llama.cpp's quantising kernels from the package xllamacpp, which is missing or (on some "
        "systems) does not show them: pip install xllamacpp, or export f16 and run llama.cpp's llama-quantize on it"
    )


def _value(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1]) / "gguf-py"))
    quantise_file(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], gguf=import_module("gguf"))
