"""GGUF files: written by llama.cpp's converter, loaded by llama.cpp; what can't be one is refused first."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
)

from lrc.cli import main
from lrc.errors import CheckpointError, ConfigError, NumericsError
from lrc.export import gguf as gguf_export
from lrc.export import gguf_parity
from lrc.export.ggml_quantise import mixture_type, quantise
from lrc.export.gguf import PARITY_NAME, check_gguf, write_proven_gguf
from lrc.export.gguf_parity import check_gguf_parity
from lrc.export.llama_cpp import ask_llama_cpp
from lrc.export.probe import compare, log_probabilities, probe_windows
from lrc.models.teacher import load_model, load_tokenizer
from lrc.verbs.export_llama import export_llama
from tests.export.bpe_student import bpe_student, save_bpe_tokenizer
from tests.models.tiny_configs import SIZES
from tests.tiny import teacher_folder, tiny_teacher

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
FIT_32 = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8}


EVERY = 4
"""Each how many-th position these tests compare; llama.cpp's server takes its time, and 128 tell a wrong file."""


@pytest.fixture(autouse=True)
def fewer_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_parity, "scored_every", lambda vocab_size: EVERY)


def export(student: Path, out: Path, kind: str, converter: Path, *, overwrite: bool = False) -> dict[str, Any]:
    config = check_gguf(student, kind)
    lines: list[str] = []
    path = write_proven_gguf(
        student, out, kind=kind, converter=converter, config=config, overwrite=overwrite, say=lines.append
    )
    assert path == out / f"{student.name}-{kind.upper()}.gguf"
    assert sorted(entry.name for entry in out.iterdir()) == sorted([path.name, PARITY_NAME])
    facts: dict[str, Any] = json.loads((out / PARITY_NAME).read_text())
    return facts | {"lines": lines}


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def fake_converter(path: Path, main: str) -> Path:
    """Write a converter of the real one's form whose `main` has this body."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conversion/__init__.py", "")
        archive.writestr("conversion/base.py", "class TextModel:\n    def get_vocab_base_pre(self, tokenizer): ...\n")
        archive.writestr("convert_hf_to_gguf.py", f"import sys\ndef main():\n    {main}\n")
    return path


WRITES_ITS_ARGUMENTS = "open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write(' '.join(sys.argv))"


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"rope_parameters": LLAMA_3_ROPE}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("qwen3", {"tie_word_embeddings": False}),
    ],
    ids=["llama, tied", "llama, untied", "llama, llama3 rope", "qwen3, tied", "qwen3, untied"],
)
def test_f32_file_computes_what_transformers_does(
    tmp_path: Path, converter: Path, family: str, changes: dict[str, Any]
) -> None:
    pytest.importorskip("xllamacpp")
    student = bpe_student(tmp_path / "student", family, **changes)
    facts = export(student, tmp_path / "out", "f32", converter)
    assert facts["verified"]
    assert facts["passed"]
    assert facts["max_abs_difference"] <= 1e-3
    assert facts["top1_agreement"] >= 0.99
    assert facts["positions"] == 8 * 64 // EVERY
    assert f"float32, {6 * 64 // EVERY} positions of text: KL " in facts["lines"][-1]


def test_the_probe_sees_whether_a_file_scales_its_rope(tmp_path: Path) -> None:
    scaled = tiny_teacher("llama", vocab_size=320, rope_parameters=LLAMA_3_ROPE)
    plain = tiny_teacher("llama", vocab_size=320)
    windows = probe_windows(None, 320)
    measured = compare(log_probabilities(plain, windows), log_probabilities(scaled, windows))
    assert measured["max_abs_difference"] > 10 * 1e-3


@pytest.mark.slow
def test_a_family_that_the_converter_does_not_know_ends_with_exit_code_2_and_leaves_nothing(
    tmp_path: Path, converter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tmp_path / "student"
    student.mkdir()
    sizes = SIZES | {"vocab_size": save_bpe_tokenizer(student), "head_dim": 8}
    DiffLlamaForCausalLM(DiffLlamaConfig(**sizes)).save_pretrained(student)
    before = sorted(path.name for path in student.iterdir())
    assert main(["export", str(student), str(tmp_path / "out"), "--as", "gguf"]) == 2
    assert "llama.cpp's converter must know the class of" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]
    assert sorted(path.name for path in student.iterdir()) == before


def test_what_is_said_is_of_text_and_names_those_that_float32_does_not_settle() -> None:
    text = {"positions": 384, "kl": 0.02, "top1_agreement": 0.5}
    facts = {"positions": 512, "kl": 0.3, "top1_agreement": 0.4, "max_abs_difference": 2.0, "text": text}
    settled = {"positions": 506, "max_abs_difference": 1.0}
    told = gguf_export._told(facts | {"chaotic_positions": 6, "settled": settled})
    assert "384 positions of text: KL 2.00e-02, first choice equal at 50.00%; largest" in told
    assert "at all 512 positions 2.00e+00 (1.00e+00" in told
    assert told.endswith("settles the logits: all but 6)")
    assert gguf_export._told(facts | {"chaotic_positions": 0}).endswith("at all 512 positions 2.00e+00")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes"), [("f16", {}), ("q8_0", FIT_32)])
def test_smaller_files_stay_near(tmp_path: Path, converter: Path, kind: str, sizes: dict[str, int]) -> None:
    pytest.importorskip("xllamacpp")
    facts = export(bpe_student(tmp_path / "student", **sizes), tmp_path / "out", kind, converter)
    assert facts["verified"]
    assert facts["text"]["kl"] <= {"f16": 1e-4, "q8_0": 1e-2}[kind]
    if kind == "f16":
        assert facts["text"]["top1_agreement"] >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes"), [("q5_0", FIT_32), ("q4_k_m", WIDE)])
def test_few_bits_cost_what_rounding_the_weights_costs_in_transformers(
    tmp_path: Path, converter: Path, kind: str, sizes: dict[str, int]
) -> None:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    student = bpe_student(tmp_path / "student", **sizes)
    expected = kl_of_rounded_weights(student, kind)
    facts = export(student, tmp_path / "out", kind, converter)
    assert expected > 1e-3
    # llama.cpp rounds its activations too; measured: 0.251 for 0.249
    assert facts["kl"] == pytest.approx(expected, rel=0.2)


@torch.no_grad()
def kl_of_rounded_weights(student: Path, kind: str) -> float:
    """Quantise each matrix, read it back with the gguf library, and compare both models in transformers."""
    import gguf

    model = load_model(str(student), dtype=torch.float32, device=torch.device("cpu"))
    sequences = probe_windows(load_tokenizer(student), model.config.vocab_size)
    plain = log_probabilities(model, sequences, every=EVERY)
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        chosen = mixture_type(gguf_name(name), kind=kind, num_layers=2, is_tied=False, row_length=weight.shape[-1])
        ggml_type = gguf.GGMLQuantizationType[chosen]
        packed = quantise(weight.numpy(), ggml_type, gguf.quant_shape_to_byte_shape(weight.shape, ggml_type))
        weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, ggml_type)))
    return float(compare(log_probabilities(model, sequences, every=EVERY), plain)["kl"])


def gguf_name(name: str) -> str:
    for theirs, ours in {"model.embed_tokens": "token_embd", "lm_head": "output", "model.layers": "blk"}.items():
        name = name.replace(theirs, ours)
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    parts |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    for theirs, ours in (parts | {"mlp.down_proj": "ffn_down"}).items():
        name = name.replace(theirs, ours)
    return name


@pytest.mark.slow
def test_file_carries_tokenizer_and_chat_template(tmp_path: Path, converter: Path) -> None:
    pytest.importorskip("xllamacpp")
    export(bpe_student(tmp_path / "student", split="llama-bpe"), tmp_path / "out", "f32", converter)
    answers = ask_llama_cpp(
        tmp_path / "out" / "student-F32.gguf", chats=[[{"role": "user", "content": "flour"}]], max_tokens=4
    )
    assert len(answers.chats) == 1


@pytest.mark.slow
def test_file_with_other_logits_is_not_published(
    tmp_path: Path, converter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    student = bpe_student(tmp_path / "student")
    other = AutoModelForCausalLM.from_pretrained(student)
    with torch.no_grad():
        other.model.norm.weight[0] += 0.5
    monkeypatch.setattr(gguf_parity, "load_model", lambda *arguments, **options: other)
    with pytest.raises(NumericsError, match=r"max_abs_difference at most 0\.001.*Nothing was published"):
        export(student, tmp_path / "out", "f32", converter)
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


def test_without_llama_cpp_the_file_says_that_nobody_loaded_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_export, "has_llama_cpp", lambda: False)
    converter = fake_converter(tmp_path / "converter.zip", WRITES_ITS_ARGUMENTS)
    student = bpe_student(tmp_path / "student", split="smollm")
    facts = export(student, tmp_path / "out", "f16", converter)
    assert facts["verified"] is False
    assert "pip install xllamacpp" in facts["remedy"]
    assert "NOT verified" in facts["lines"][0]
    written = (tmp_path / "out" / "student-F16.gguf").read_text()
    assert "--outtype f16" in written
    assert written.endswith(str(student))


@pytest.mark.parametrize("kind", ["q5_0", "q4_k_m"])
def test_kinds_that_need_the_kernels_of_llama_cpp_are_refused_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    student = bpe_student(tmp_path / "student", **WIDE)
    monkeypatch.setattr(gguf_export, "has_llama_cpp", lambda: False)
    with pytest.raises(ConfigError, match=r"xllamacpp.*lrc\[export\]"):
        check_gguf(student, kind)


@pytest.mark.parametrize(
    ("main", "error", "said"),
    [
        ("raise NotImplementedError('BPE pre-tokenizer was not recognized - update')", ConfigError, "splits text into"),
        ("raise KeyError('no such tensor')", CheckpointError, "no such tensor"),
    ],
)
def test_converter_that_fails_leaves_nothing(tmp_path: Path, main: str, error: type[Exception], said: str) -> None:
    converter = fake_converter(tmp_path / "converter.zip", main)
    student = bpe_student(tmp_path / "student", split="other")
    with pytest.raises(error, match=said):
        export(student, tmp_path / "out", "f32", converter)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["converter.zip", "student"]


@pytest.mark.parametrize(
    ("kind", "sizes", "said"),
    [
        ("q4_k_m", FIT_32, r"multiple of 256, but .* rows of 32\. Use q5_0 or q8_0 or f16"),
        ("q8_0", {"hidden_size": 48, "head_dim": 8}, r"multiple of 32, but .*\. Use f16, or train"),
    ],
)
def test_rows_without_whole_blocks_are_refused_with_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, sizes: dict[str, int], said: str
) -> None:
    monkeypatch.setattr(gguf_export, "has_llama_cpp", lambda: True)
    with pytest.raises(ConfigError, match=said):
        check_gguf(bpe_student(tmp_path / "student", **sizes), kind)


def test_qwen2_with_a_head_size_of_its_own_must_become_a_llama_first(tmp_path: Path) -> None:
    student = bpe_student(tmp_path / "student", "qwen2")  # 4 heads of 6 at hidden size 32
    with pytest.raises(ConfigError, match=r"4 heads of 6 at hidden size 32.*--as llama"):
        check_gguf(student, "f32")
    check_gguf(bpe_student(tmp_path / "plain", "qwen2", head_dim=8), "f32")


@pytest.mark.parametrize("hidden_size", [32, 30])
def test_a_qwen2_that_became_a_llama_computes_what_the_qwen2_does(
    tmp_path: Path, converter: Path, hidden_size: int
) -> None:
    pytest.importorskip("xllamacpp")
    student = bpe_student(tmp_path / "student", "qwen2", split="qwen2", hidden_size=hidden_size)  # 4 heads of 6
    llama = tmp_path / "llama"
    export_llama(str(student), llama, max_shard_bytes=10**9, overwrite=False, dry_run=False)
    facts = export(llama, tmp_path / "out", "f32", converter)
    assert facts["verified"]
    assert facts["max_abs_difference"] <= 1e-3
    # and against the Qwen2 itself, which no step before has seen beside the file
    (path,) = (tmp_path / "out").glob("*.gguf")
    check_gguf_parity(student, path, kind="f32", vocab_size=load_tokenizer(student).vocab_size)


def test_quantised_student_is_refused(tmp_path: Path) -> None:
    student = bpe_student(tmp_path / "student")
    path = student / "config.json"
    quantised = {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {}}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantised))
    with pytest.raises(ConfigError, match=r"must hold plain weights, but .* is quantised\. Export what it came from"):
        check_gguf(student, "f16")


def test_unknown_type_and_missing_tokenizer_are_refused(tmp_path: Path) -> None:
    student = teacher_folder(tmp_path / "student")
    with pytest.raises(ConfigError, match=r"one of f32, f16, q8_0, q5_0, q4_k_m; found 'q3'"):
        check_gguf(student, "q3")
    (student / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"must hold tokenizer\.json or tokenizer\.model"):
        check_gguf(student, "f32")


def test_sentencepiece_tokenizer_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = bpe_student(tmp_path / "student")
    (student / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(gguf_export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install sentencepiece"):
        check_gguf(student, "f32")


def test_output_that_exists_is_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("here")
    converter = fake_converter(tmp_path / "converter.zip", WRITES_ITS_ARGUMENTS)
    with pytest.raises(ConfigError, match="--overwrite"):
        export(bpe_student(tmp_path / "student"), tmp_path / "out", "f32", converter)
    assert (tmp_path / "out" / "kept").read_text() == "here"


@pytest.mark.parametrize("kind", [GemmaConfig, Gemma2Config])
def test_an_untied_gemma_is_refused_before_the_converter_drops_its_head(kind: Any) -> None:
    gguf_export._check_class(kind(tie_word_embeddings=True))
    with pytest.raises(ConfigError, match=r"no head of its own for gemma.*tie_embedding_projection=true"):
        gguf_export._check_class(kind(tie_word_embeddings=False))


@pytest.mark.parametrize(
    ("kind", "layers", "hidden_size", "scalar"), [(Gemma2Config, 46, 4608, 144), (Gemma3TextConfig, 62, 5376, 168)]
)
def test_a_gemma_whose_attention_llama_cpp_would_scale_otherwise_is_refused(
    kind: Any, layers: int, hidden_size: int, scalar: int
) -> None:
    sizes = {"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": scalar}
    gguf_export._check_class(kind(hidden_size=hidden_size, num_hidden_layers=layers, **sizes))  # the 27B itself
    with pytest.raises(ConfigError, match=rf"root of 72 \(hidden size / heads.*scalar, {scalar}\..*vLLM"):
        gguf_export._check_class(kind(hidden_size=2304, num_hidden_layers=layers, **sizes))
    with pytest.raises(ConfigError, match=rf"root of 128 \(the head size\).*scalar, {scalar}\."):
        gguf_export._check_class(kind(hidden_size=hidden_size, num_hidden_layers=layers - 1, **sizes))
    gguf_export._check_class(kind(hidden_size=2304, num_hidden_layers=26))  # a student of a smaller one
