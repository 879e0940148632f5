"""A student re-expressed as a Llama has its logits, whatever is odd about it; what is no Llama is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from lrc.errors import CheckpointError, ConfigError
from lrc.export.as_llama import llama_plan, write_llama
from lrc.export.llama_parity import check_llama_parity
from lrc.models.folder import ModelTensors
from tests.models.family_configs import LLAMA3_ROPE
from tests.tiny import teacher_folder, tiny_teacher

IDS = torch.arange(90)[None] * 7 % 48
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 321.0},
    "linear": {"rope_type": "linear", "rope_theta": 321.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 321.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 321.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": LLAMA3_ROPE,
}


def logits(folder: Path, length: int = 60) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS[:, :length]).logits
    return found


def llama(student: Path, out: Path, max_shard_bytes: int = 10**9) -> Path:
    out.mkdir()
    write_llama(llama_plan(str(student)), out, max_shard_bytes=max_shard_bytes)
    return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rope", ROPES)
def test_a_qwen2_with_an_odd_head_size_has_bitwise_equal_logits(tmp_path: Path, rope: str, tied: bool) -> None:
    # 28 channels, 4 heads of 6: neither engines' 28 / 4 nor an even share
    changes = {"hidden_size": 28, "tie_word_embeddings": tied, "rope_parameters": dict(ROPES[rope])}
    student = teacher_folder(tmp_path / "student", "qwen2", **changes)
    out = llama(student, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["model_type"], config["head_dim"], config["attention_bias"]) == ("llama", 6, True)
    assert ("lm_head.weight" in ModelTensors(out)) is not tied
    assert ModelTensors(out).read("model.layers.1.self_attn.o_proj.bias").abs().max() == 0
    assert torch.equal(logits(out, 90), logits(student, 90))  # dynamic scaling begins beyond the context of 64


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "hidden"), [("qwen2", 30), ("qwen2", 9), ("mistral", 30), ("mistral", 9)])
def test_a_hidden_size_that_the_heads_do_not_divide_is_padded(
    tmp_path: Path, family: str, hidden: int, tied: bool
) -> None:
    changes: dict[str, Any] = {"hidden_size": hidden, "tie_word_embeddings": tied, "rms_norm_eps": 0.01}
    if family == "mistral":
        changes["sliding_window"] = 64
    student = teacher_folder(tmp_path / "student", family, **changes)
    out = llama(student, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["hidden_size"] == -(-hidden // 4) * 4
    assert config["rms_norm_eps"] == pytest.approx(0.01 * hidden / config["hidden_size"])
    expected = logits(student)
    assert (logits(out) - expected).abs().max() <= 1e-5 * expected.square().mean().sqrt()


def test_padding_by_hand() -> None:
    """The docstring's formula on three numbers: what a padded norm gives is what the narrow one gives."""
    x, gain, eps = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 2.0, -1.0]), 0.1
    narrow = gain * x / (x.square().mean() + eps).sqrt()
    wide = torch.nn.functional.pad(gain, (0, 1)) * (3 / 4) ** 0.5
    padded = torch.nn.functional.pad(x, (0, 1))
    assert torch.allclose(
        wide * padded / (padded.square().mean() + eps * 3 / 4).sqrt(), torch.nn.functional.pad(narrow, (0, 1))
    )


def test_a_llama_of_an_older_transformers_is_padded(tmp_path: Path) -> None:
    student = teacher_folder(tmp_path / "student", "mistral", hidden_size=30, sliding_window=None)
    expected = logits(student)
    path = student / "config.json"
    values = json.loads(path.read_text()) | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    path.write_text(json.dumps(values))
    with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
        AutoConfig.from_pretrained(student)
    out = llama(student, tmp_path / "out")
    assert (logits(out) - expected).abs().max() <= 1e-5 * expected.square().mean().sqrt()
    path.write_text(json.dumps(values | {"attention_bias": True}))
    with pytest.raises(ConfigError, match="Clone the teacher to a multiple"):
        llama_plan(str(student))


@pytest.mark.parametrize("biased", [True, False])
def test_a_llama_stays_what_it_is(tmp_path: Path, biased: bool) -> None:
    student = teacher_folder(tmp_path / "student", attention_bias=biased, mlp_bias=biased)
    out = llama(student, tmp_path / "out")
    before, after = ModelTensors(student), ModelTensors(out)
    assert sorted(before.names()) == sorted(after.names())
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.names())
    assert torch.equal(logits(out), logits(student))


def test_a_context_no_longer_than_the_window_is_the_whole_context(tmp_path: Path) -> None:
    student = teacher_folder(tmp_path / "student", "mistral", sliding_window=64)
    assert torch.equal(logits(llama(student, tmp_path / "out")), logits(student))


def test_bfloat16_weights_are_kept_bit_by_bit(tmp_path: Path) -> None:
    student = tmp_path / "student"
    tiny_teacher("qwen2").to(torch.bfloat16).save_pretrained(student)  # type: ignore[operator]
    out = llama(student, tmp_path / "out")
    assert ModelTensors(out).dtype() == torch.bfloat16
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert torch.equal(logits(out), logits(student))


def test_small_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    student = teacher_folder(tmp_path / "student", "qwen2")
    one, many = llama(student, tmp_path / "one"), llama(student, tmp_path / "many", max_shard_bytes=4_000)
    assert len(list(many.glob("*.safetensors"))) > 2
    whole, parts = ModelTensors(one), ModelTensors(many)
    assert sorted(whole.names()) == sorted(parts.names())
    assert all(torch.equal(whole.read(name), parts.read(name)) for name in whole.names())


def test_a_plain_llama_class_loads_it_without_missing_or_unexpected_tensors(tmp_path: Path) -> None:
    out = llama(teacher_folder(tmp_path / "student", "qwen2", hidden_size=30), tmp_path / "out")
    _, loading = LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values()), loading


@pytest.mark.parametrize(
    ("family", "changes", "reasons"),
    [
        ("qwen3", {}, ["qwen3 computes something else", "k_norm, q_norm"]),
        ("gemma3_text", {"sliding_window": 8}, ["gemma3_text computes something else", "layers look back"]),
        ("mistral", {"sliding_window": 8}, ["look back 8 tokens only", "max_position_embeddings is 64"]),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            ["look back 8 tokens only"],
        ),
    ],
)
def test_what_is_no_llama_is_refused_with_every_reason(
    tmp_path: Path, family: str, changes: dict[str, Any], reasons: list[str]
) -> None:
    student = teacher_folder(tmp_path / "student", family, **changes)
    with pytest.raises(ConfigError) as caught:
        llama_plan(str(student))
    for reason in [*reasons, "lrc serve-check"]:
        assert reason in str(caught.value)


def test_a_qwen2_with_its_window_off_is_taken(tmp_path: Path) -> None:
    student = teacher_folder(tmp_path / "student", "qwen2", use_sliding_window=False, sliding_window=8)
    assert llama_plan(str(student)).llama.attention_bias is True


def test_a_quantised_student_is_refused(tmp_path: Path) -> None:
    student = teacher_folder(tmp_path / "student", "qwen2")
    values = json.loads((student / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (student / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="quantised"):
        llama_plan(str(student))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "extra is one too many"),
        (
            lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.weight": torch.zeros(24, 31)}),
            r"q_proj.weight of .* has the shape \[24, 31\]",
        ),
    ],
)
def test_damaged_weights_are_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    student = teacher_folder(tmp_path / "student", "qwen2")
    tensors = load_file(student / "model.safetensors")
    spoil(tensors)
    save_file(tensors, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        llama_plan(str(student))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        llama_plan(str(tmp_path))


@pytest.mark.parametrize("hidden_size", [32, 30])
def test_tensors_keep_a_dtype_of_their_own(tmp_path: Path, hidden_size: int) -> None:
    student = teacher_folder(tmp_path / "student", "qwen2", hidden_size=hidden_size)
    tensors = load_file(student / "model.safetensors")
    mixed = {name: value if "norm" in name else value.to(torch.bfloat16) for name, value in tensors.items()}
    save_file(mixed, student / "model.safetensors", metadata={"format": "pt"})
    plan, out = llama_plan(str(student)), llama(student, tmp_path / "out")
    found = {name: tensor.dtype for name, tensor in load_file(out / "model.safetensors").items()}
    bias = {f"model.layers.{layer}.self_attn.o_proj.bias": torch.bfloat16 for layer in (0, 1)}
    assert found == {name: tensor.dtype for name, tensor in mixed.items()} | bias
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert check_llama_parity(plan, out)["rounding"] < 1e-5
