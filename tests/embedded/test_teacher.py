"""The embedded teacher, from a tiny GGUF file of the same kind written here."""

import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, TokenType
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrc.embedded import teacher
from lrc.embedded.packages import Member, Wheel
from lrc.embedded.teacher import embedded_teacher
from lrc.errors import ConfigError, LrcError

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS = 12, 16, 3, 1, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def write_gguf(path: Path) -> dict[str, torch.Tensor]:
    """Write a two-layer Llama of SmolLM2's kind and return its tensors by GGUF name."""
    letters = sorted(ByteLevel.alphabet())
    tokens = SPECIAL + letters + ["12", "34", "1234"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["1 2", "3 4", "12 34"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    tensors = random_tensors(len(tokens))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def random_tensors(vocabulary: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (vocabulary, HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN),
            "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (FFN, HIDDEN),
            "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return {f"{name}.weight": draw.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Put a wheel with a tiny GGUF file where the real one may be put by hand; return the file's tensors."""
    gguf_path = tmp_path / "tiny.gguf"
    tensors = write_gguf(gguf_path)
    wheels = tmp_path / "cache" / "wheels"
    wheels.mkdir(parents=True)
    wheel_path = wheels / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel_path, "w") as archive:
        archive.write(gguf_path, "tiny/tiny.gguf")
    wheel_sha256 = hashlib.sha256(wheel_path.read_bytes()).hexdigest()
    wheel = Wheel(package="tiny", version="1", file_name=wheel_path.name, num_bytes=1, sha256=wheel_sha256)
    gguf_sha256 = hashlib.sha256(gguf_path.read_bytes()).hexdigest()
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(teacher, "_WHEEL", wheel)
    monkeypatch.setattr(teacher, "_GGUF", Member(path="tiny/tiny.gguf", sha256=gguf_sha256))
    return tensors


def test_folder_is_a_plain_bfloat16_model_with_a_clean_config(written: dict[str, torch.Tensor]) -> None:
    lines: list[str] = []
    folder = embedded_teacher(report=lines.append)
    assert lines[-1].endswith("is ready.")
    config = json.loads((folder / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["dtype"] == "bfloat16"
    assert not {"quantization_config", "_model_name_or_path", "unk_token_id"} & config.keys()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    state = model.state_dict()
    for gguf_name, name in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }.items():
        assert torch.equal(state[name], written[gguf_name].bfloat16()), name
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 2)
    expected = {
        "SHA256SUMS.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in folder.iterdir()} == expected
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


@pytest.mark.usefixtures("written")
def test_tokenizer_splits_digits_and_knows_nothing_of_this_machine() -> None:
    folder = embedded_teacher(report=lambda line: None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("a1234<|im_end|>") == ["a", "1", "2", "3", "4", "<|im_end|>"]
    assert tokenizer.decode(tokenizer("It costs 1234.").input_ids) == "It costs 1234."
    assert tokenizer.model_max_length == 64
    assert tokenizer.chat_template == TEMPLATE
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path", "vocab_file"} & config.keys()
    assert str(folder.parent) not in (folder / "tokenizer_config.json").read_text()


def test_later_calls_only_verify_and_damage_is_repaired(
    written: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded_teacher(report=lambda line: None)
    weights = (folder / "model.safetensors").read_bytes()
    assert embedded_teacher(report=lambda line: pytest.fail(line)) == folder
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    lines: list[str] = []
    embedded_teacher(report=lines.append)
    assert "content of model.safetensors has changed" in lines[0]
    assert (folder / "model.safetensors").read_bytes() == weights


def test_unknown_name_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"must be 'smollm2-135m-instruct', found 'gpt5'"):
        embedded_teacher("gpt5")


@pytest.mark.usefixtures("written")
def test_missing_gguf_package_is_explained_before_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(LrcError, match=r"pip install 'lrc\[demo\]'"):
        embedded_teacher(report=lambda line: pytest.fail(line))
