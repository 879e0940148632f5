"""A Hugging Face folder written as one GGUF file, by llama.cpp's own converter and quantisers, proven by llama.cpp.

The flow: `check_gguf` (class and sizes, from config and shapes alone) -> the converter in a process of its own ->
`lrc/export/ggml_quantise.py` for what the converter can't write -> `lrc/export/gguf_parity.py` -> published.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lrc.errors import CheckpointError, ConfigError
from lrc.export.folder import written_folder
from lrc.export.gguf_parity import check_gguf_parity
from lrc.export.gguf_runner import NONE
from lrc.export.llama_cpp import has_llama_cpp
from lrc.export.own_process import run_module
from lrc.export.plain_folder import check_plain_weights
from lrc.export.pre_tokenizer import pre_tokenizer_name
from lrc.export.serving import has_own_head_size, stored_head_size, window_lost_in_llama_cpp
from lrc.models.folder import ModelTensors
from lrc.models.teacher import load_config, load_tokenizer

PARITY_NAME = "gguf_parity.json"
GGUF_TYPES = {"f32": 1, "f16": 1, "q8_0": 32, "q5_0": 32, "q4_k_m": 256}
"""Each kind of file and the block of weights that shares a scale: every matrix must have whole blocks in a row."""
BY_CONVERTER = ("f32", "f16", "q8_0")
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3_text": 62}
"""Depth by which llama.cpp takes a Gemma for the 27B, whose attention it scales by another rule."""
UNVERIFIED = (
    "NOT verified: llama.cpp is not installed here, so nobody has loaded this file yet. Install it (pip install "
    "xllamacpp, a wheel of 34 MB) and export again with --overwrite."
)

Say = Callable[[str], None]


def write_proven_gguf(
    student: Path, out: Path, *, kind: str, converter: Path, config: Any, overwrite: bool = False, say: Say = print
) -> Path:
    """Write `out/NAME-KIND.gguf` and, beside it, `gguf_parity.json`: what llama.cpp computes with it.

    Args:
        student: Hugging Face folder that passed `check_gguf`.
        out: Folder of the file; it is not there unless the file was proven, or llama.cpp is not installed.
        kind: A key of `GGUF_TYPES`.
        converter: Zip file of llama.cpp's converter.
        config: The student's, from `check_gguf`.
        overwrite: Replace `out`.
        say: Receives one line a step.

    Returns:
        Path of the GGUF file.

    Raises:
        ConfigError: `out` exists, or the tokenizer can't be written; nothing is written.
        CheckpointError: The converter failed, or the disk is full.
        NumericsError: llama.cpp computes something else than transformers; nothing is published.
    """
    with written_folder(out, overwrite=overwrite) as draft:
        gguf = draft / f"{student.resolve().name}-{kind.upper()}.gguf"
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=draft) as scratch:
            write_gguf(student, gguf, kind=kind, converter=converter, scratch=Path(scratch))
        written = f"{gguf.name}: {gguf.stat().st_size / 1e6:.1f} MB written"
        facts: dict[str, Any] = {"verified": False, "kind": kind, "remedy": UNVERIFIED}
        if has_llama_cpp():
            say(f"{written}; llama.cpp computes it beside transformers.")
            facts = {"verified": True} | check_gguf_parity(student, gguf, kind=kind, vocab_size=config.vocab_size)
            say(_told(facts))
        else:
            say(f"{written}. {UNVERIFIED}")
        (draft / PARITY_NAME).write_text(json.dumps(facts, indent=2) + "\n")
    return out / gguf.name


def _told(facts: dict[str, Any]) -> str:
    text = facts["text"]
    line = (
        f"llama.cpp against transformers in float32, {text['positions']} positions of text: KL {text['kl']:.2e}, first "
        f"choice equal at {text['top1_agreement']:.2%}; largest difference at all {facts['positions']} positions "
        f"{facts['max_abs_difference']:.2e}"
    )
    if facts["chaotic_positions"] and facts["settled"]["positions"]:
        line += f" ({facts['settled']['max_abs_difference']:.2e} where float32 settles the logits: all but "
        line += f"{facts['chaotic_positions']})"
    return line


def check_gguf(student: Path, kind: str) -> Any:
    """Check that a student can be written as a kind of GGUF file, and return its config.

    Raises:
        ConfigError: It can't; the message names the nearest kind or the way round.
        CheckpointError: Its weights or its tokenizer are damaged.
    """
    if kind not in GGUF_TYPES:
        raise ConfigError(f"The type of a GGUF file must be one of {', '.join(GGUF_TYPES)}; found {kind!r}.")
    if kind not in BY_CONVERTER and not has_llama_cpp():
        raise ConfigError(
            f"A GGUF file of type {kind} is quantised by the kernels of xllamacpp. Install it with: pip install "
            f"'lrc[export]', or export f16 and run llama.cpp's llama-quantize on it."
        )
    config = load_config(str(student))
    check_plain_weights(config, student)
    _check_class(config)
    tokenizer_files = ("tokenizer.json", "tokenizer.model")
    if not any((student / name).is_file() for name in tokenizer_files):
        raise ConfigError(
            f"A GGUF file carries its tokenizer, so {student} must hold {' or '.join(tokenizer_files)}, but has "
            f"neither. Copy the teacher's there."
        )
    if (student / "tokenizer.model").is_file() and find_spec("sentencepiece") is None:
        raise ConfigError(f"{student} has a sentencepiece tokenizer, which needs: pip install sentencepiece.")
    load_tokenizer(student)
    row_lengths = _row_lengths(ModelTensors(student))
    unfit = {length: name for length, name in row_lengths.items() if length % GGUF_TYPES[kind]}
    if unfit:
        fitting = [
            other
            for other in ("q5_0", "q8_0", "f16")
            if other != kind and all(length % GGUF_TYPES[other] == 0 for length in row_lengths)
        ]
        length, name = next(iter(unfit.items()))
        raise ConfigError(
            f"{kind} packs {GGUF_TYPES[kind]} weights of a row together, so every matrix must have rows of a multiple "
            f"of {GGUF_TYPES[kind]}, but {name} of {student} has rows of {length}. Use {' or '.join(fitting)}, or "
            f"train a student whose hidden and FFN size are multiples of {GGUF_TYPES[kind]}."
        )
    return config


def _check_class(config: Any) -> None:
    values = config.to_dict()
    if config.model_type in ("gemma", "gemma2") and not config.tie_word_embeddings:
        raise ConfigError(
            f"llama.cpp has no head of its own for {config.model_type}: it takes the embedding, but this student has "
            "two. Train one with student.tie_embedding_projection=true."
        )
    if config.model_type == "qwen2" and has_own_head_size(values):
        raise ConfigError(
            f"llama.cpp takes a Qwen2's head size to be hidden size / heads, but this one has "
            f"{config.num_attention_heads} heads of {stored_head_size(values)} at hidden size {config.hidden_size}. "
            f"First re-express it exactly as a Llama: lrc export STUDENT LLAMA --as llama, then export LLAMA."
        )
    if (window := window_lost_in_llama_cpp(values)) is not None:
        raise ConfigError(
            f"llama.cpp must compute every layer of a file with the window that it was trained with, but its "
            f"{config.model_type} does not at the layers of this student that look back {window} tokens only, out of a "
            f"context of {config.max_position_embeddings}; the check, on 64 tokens, could not tell. Serve it with "
            f"transformers or vLLM; or, if {window} tokens are enough and its rotary embedding is not scaled, set "
            f"max_position_embeddings to {window} in its config.json."
        )
    if config.model_type in GEMMA_27B_LAYERS:
        _check_attention_scale(config)


def _check_attention_scale(config: Any) -> None:
    """Refuse a Gemma whose attention llama.cpp, which does not read query_pre_attn_scalar, scales otherwise.

    Its loader takes one over the root of n_embd / n_head, a whole number, for the 27B, of the head size for all others.
    """
    kind, layers = config.model_type, config.num_hidden_layers
    is_27b = layers == GEMMA_27B_LAYERS[kind]
    taken = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
    if taken == config.query_pre_attn_scalar:
        return
    rule = f"hidden size / heads, {config.hidden_size} / {config.num_attention_heads}" if is_27b else "the head size"
    raise ConfigError(
        f"llama.cpp scales the attention of a {kind} of {layers} layers by one over the root of {taken} ({rule}), but "
        f"this student's is one over the root of its query_pre_attn_scalar, {config.query_pre_attn_scalar}. A GGUF "
        "file of it would compute something else. Serve it with transformers or vLLM."
    )


def _row_lengths(tensors: ModelTensors) -> dict[int, str]:
    """Map each length of a matrix's rows to the first matrix with it; a convolution's kernel is no row of one."""
    lengths: dict[int, str] = {}
    for name in sorted(tensors.names()):
        shape, _ = tensors.shape_and_dtype(name)
        is_convolution = len(shape) == 3 and shape[1] == 1
        if len(shape) >= 2 and not is_convolution:
            lengths.setdefault(shape[-1], name)
    return lengths


def write_gguf(student: Path, gguf: Path, *, kind: str, converter: Path, scratch: Path) -> None:
    """Write a GGUF file, unproven.

    Args:
        student: Hugging Face folder.
        gguf: The file to write.
        kind: A key of `GGUF_TYPES`.
        converter: Zip file of llama.cpp's converter.
        scratch: Empty folder on the same disk; holds a float32 copy for the kinds that the converter can't write.

    Raises:
        ConfigError: llama.cpp has no pre-tokenizer that splits as the tokenizer does.
        CheckpointError: A step failed; the message says why.
    """
    unpacked = scratch / "converter"
    with zipfile.ZipFile(converter) as archive:
        archive.extractall(unpacked)
    converted = gguf if kind in BY_CONVERTER else scratch / "converted.gguf"
    _convert(student, converted, outtype=kind if kind in BY_CONVERTER else "f32", unpacked=unpacked, scratch=scratch)
    if converted != gguf:
        arguments = [str(unpacked), str(converted), str(gguf.resolve()), kind]
        failure = run_module("lrc.export.ggml_quantise", arguments, scratch=scratch)
        if failure is not None:
            raise CheckpointError(f"{gguf.name} could not be quantised: {failure}")
    shutil.rmtree(unpacked)


def _convert(student: Path, gguf: Path, *, outtype: str, unpacked: Path, scratch: Path) -> None:
    options = ["--outtype", outtype, "--outfile", str(gguf.resolve()), "--model-name", student.resolve().name]
    arguments = [str(unpacked), pre_tokenizer_name(student) or NONE, *options, str(student.resolve())]
    failure = run_module("lrc.export.gguf_runner", arguments, scratch=scratch)
    if failure is None:
        return
    if "pre-tokenizer was not recognized" in failure:
        raise ConfigError(
            f"llama.cpp must know how the tokenizer of {student} splits text into words, but its converter does not "
            f"know this tokenizer, and it splits unlike GPT-2, SmolLM, Llama 3 and Qwen 2. Use the tokenizer of a "
            f"published teacher."
        )
    if "ForCausalLM is not supported" in failure:
        kind = load_config(str(student)).model_type
        raise ConfigError(
            f"llama.cpp's converter must know the class of {student}, but knows no {kind}. Serve it with transformers, "
            f"or see what else takes it: lrc serve-check {student}."
        )
    raise CheckpointError(f"llama.cpp's converter could not convert {student}: {failure}")
