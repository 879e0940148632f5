"""Convert: a stock folder equal to the factored student, in every form a checkpoint can have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lrc.config import StudentConfig
from lrc.errors import CheckpointError, ConfigError, NumericsError
from lrc.export import parity
from lrc.export.convert import read_source, write_student
from lrc.export.original_student import OriginalStudent
from lrc.export.parity import check_parity
from lrc.models.folder import ModelTensors
from lrc.models.tiny import random_model
from lrc.verbs.convert import convert
from lrc.verbs.train import train
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.tiny_configs import FAMILIES
from tests.tiny import save_tokenizer, teacher_folder, tiny_recipe, write_rows


def trained(root: Path, family: str = "llama", *, tied: bool = False, student: dict[str, object] | None = None) -> Path:
    teacher_folder(root / "teacher", family, tie_word_embeddings=tied)
    write_rows(root / "train.jsonl")
    write_rows(root / "held_out.jsonl", rows=4, seed=1)
    recipe = tiny_recipe(root, train__max_steps=2, student={"hidden_size": 16, **(student or {})})
    return train(recipe)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_a_stock_model_with_the_factored_logits(tmp_path: Path, family: str, tied: bool) -> None:
    checkpoint = trained(tmp_path, family, tied=tied)
    out = convert(checkpoint, tmp_path / "out")
    parity = json.loads((out / "parity.json").read_text())
    assert parity["passed"] is True
    assert parity["dtype"] == "float32"
    assert parity["in_memory"]["relative_difference"] < 1e-5
    assert parity["after_reload"]["relative_difference"] < 1e-5
    config = json.loads((out / "config.json").read_text())
    teacher_config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    changed = {key for key in teacher_config if config.get(key) != teacher_config[key]}
    assert changed <= {"hidden_size", "tie_word_embeddings", "layer_types", "transformers_version"}
    assert config["hidden_size"] == 16
    assert config["head_dim"] == 6
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert {"rope_theta", "rope_scaling"} <= set(config)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "teacher" / name).read_bytes()


@pytest.mark.parametrize("attention", ["all", "io"])
@pytest.mark.parametrize("ffn", ["all", "io"])
@pytest.mark.parametrize("tie", [True, False])
def test_every_variant_converts(tmp_path: Path, attention: str, ffn: str, tie: bool) -> None:
    student = {"attention_projections": attention, "ffn_projections": ffn, "tie_embedding_projection": tie}
    out = convert(trained(tmp_path, tied=True, student=student), tmp_path / "out")
    assert json.loads((out / "parity.json").read_text())["passed"] is True
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is tie
    assert ("lm_head.weight" in ModelTensors(out)) is not tie


def test_small_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    checkpoint = trained(tmp_path)
    one = ModelTensors(convert(checkpoint, tmp_path / "one"))
    many_folder = convert(checkpoint, tmp_path / "many", max_shard_bytes=4_000)
    many = ModelTensors(many_folder)
    assert len(list(many_folder.glob("*.safetensors"))) > 2
    assert set(one.names()) == set(many.names())
    assert all(torch.equal(one.read(name), many.read(name)) for name in one.names())


def test_bfloat16_export_passes_within_its_tolerance(tmp_path: Path) -> None:
    out = convert(trained(tmp_path), tmp_path / "out", dtype="bfloat16")
    parity = json.loads((out / "parity.json").read_text())
    assert ModelTensors(out).dtype() == torch.bfloat16
    assert 0 < parity["rounding"] < parity["rounding_tolerance"]
    assert parity["after_reload"]["relative_difference"] < 1e-5
    assert parity["in_memory"]["relative_difference"] < 1e-5


def round_all_but(folder: Path, kept: str) -> dict[str, torch.Tensor]:
    """Store a teacher in bfloat16, tensors with `kept` in their name in float32; returns these."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {name: tensor if kept in name else tensor.to(torch.bfloat16) for name, tensor in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
    return {name: tensor for name, tensor in tensors.items() if kept in name}


def trained_a_step(root: Path) -> Path:
    write_rows(root / "train.jsonl")
    return train(tiny_recipe(root, train__max_steps=1, data__held_out=None))


def converted_with_wide(root: Path, kept: dict[str, torch.Tensor]) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Convert a student of a teacher whose `kept` tensors are float32, in the teacher's dtype and in float16.

    Returns:
        The checkpoint, the folder in the teacher's dtype, and its tensors, of which those of `kept` are not bfloat16.
    """
    assert len(kept) == 2
    checkpoint = trained_a_step(root)
    out = convert(checkpoint, root / "out")
    found = load_file(out / "model.safetensors")
    assert {name for name, tensor in found.items() if tensor.dtype != torch.bfloat16} == set(kept)
    facts = json.loads((out / "parity.json").read_text())
    assert (facts["dtype"], facts["passed"]) == ("bfloat16", True)
    assert facts["after_reload"]["relative_difference"] < 1e-5
    half = load_file(convert(checkpoint, root / "half", dtype="float16") / "model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    return checkpoint, out, found


@pytest.mark.parametrize("whole_bytes", [2**30, 0], ids=["whole", "streamed"])
def test_an_inherited_tensor_keeps_the_dtype_that_the_teacher_stores_it_in(
    tmp_path: Path, whole_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "WHOLE_BYTES", whole_bytes)
    path = teacher_folder(tmp_path / "teacher", "qwen3") / "model.safetensors"
    tensors = load_file(path)
    # large, and as far from bfloat16's numbers as can be, so that rounding it shows in the logits
    sharp = {name: torch.full_like(value, 4 + 2**-6) for name, value in tensors.items() if "q_norm" in name}
    save_file(tensors | sharp, path, metadata={"format": "pt"})
    kept = round_all_but(tmp_path / "teacher", "q_norm")
    checkpoint, out, found = converted_with_wide(tmp_path, kept)
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in found.items()}
    save_file(rounded, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="Nothing was published"):
        check_parity(read_source(checkpoint, teacher=None, student=None), out)


@pytest.mark.parametrize("whole_bytes", [2**30, 0], ids=["whole", "streamed"])
def test_a_merged_tensor_is_stored_as_the_teacher_s_is_where_that_is_wider(
    tmp_path: Path, whole_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "WHOLE_BYTES", whole_bytes)
    teacher_folder(tmp_path / "teacher")
    kept = round_all_but(tmp_path / "teacher", "up_proj")
    _, _, found = converted_with_wide(tmp_path, kept)
    assert not any(torch.equal(found[name], found[name].to(torch.bfloat16).float()) for name in kept)


@pytest.mark.filterwarnings("ignore:The explicitly set RoPE scaling factor")
def test_an_inherited_buffer_keeps_its_dtype_where_transformers_writes_the_files(tmp_path: Path) -> None:
    random_model(FAMILY_CONFIGS["deepseek_v3"]()).save_pretrained(tmp_path / "teacher")
    save_tokenizer(tmp_path / "teacher")
    kept = round_all_but(tmp_path / "teacher", "e_score_correction_bias")
    assert len(kept) == 2
    source = read_source(trained_a_step(tmp_path), teacher=None, student=None)
    assert source.renamed
    draft = tmp_path / "draft"
    draft.mkdir()
    write_student(source, draft, dtype="teacher", max_shard_bytes=2**30)
    found = load_file(draft / "model.safetensors")
    assert {name for name, tensor in found.items() if tensor.dtype != torch.bfloat16} == set(kept)
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())
    ids = torch.arange(4, 48)[None]
    with torch.no_grad():
        _, rounded = parity._merged_logits(source, ids, torch.bfloat16)
        torch.testing.assert_close(parity._reloaded_logits(source, ids, draft), rounded, rtol=0, atol=1e-5)


def test_a_mismatch_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = trained(tmp_path)
    from lrc.export import convert as module

    right = module.student_tensor

    def wrong(plan: object, name: str, *rest: object) -> torch.Tensor:
        tensor = right(plan, name, *rest)  # type: ignore[arg-type]
        return tensor * 1.01 if name == "model.layers.1.mlp.down_proj.weight" else tensor

    monkeypatch.setattr(module, "student_tensor", wrong)
    with pytest.raises(NumericsError, match="Nothing was published"):
        convert(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_plain_interpreter_without_lrc_loads_and_generates(tmp_path: Path) -> None:
    out = convert(trained(tmp_path), tmp_path / "out")
    script = (
        "import sys, importlib.util\n"
        "assert importlib.util.find_spec('lrc') is None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokens = AutoTokenizer.from_pretrained(sys.argv[1])('w1 w2 w3', return_tensors='pt')\n"
        "ids = model.generate(tokens['input_ids'], max_new_tokens=5, do_sample=False)\n"
        "print(type(model).__name__, ids.shape[1])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # -P and another folder keep this repository off the path; an editable install is hidden by its finder's removal
    hide = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
    hide += "sys.path = [p for p in sys.path if not p.endswith('main')]\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", hide + script, str(out)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["LlamaForCausalLM", "8"]


@pytest.mark.parametrize("attention", ["all", "io"])
@pytest.mark.parametrize("ffn", ["all", "io"])
@pytest.mark.parametrize("tie", [True, False])
def test_the_original_codes_checkpoints_give_the_same_student(
    tmp_path: Path, attention: str, ffn: str, tie: bool
) -> None:
    variant = {"attention_projections": attention, "ffn_projections": ffn, "tie_embedding_projection": tie}
    checkpoint = trained(tmp_path, student=variant)
    ours = load_file(checkpoint / "model.safetensors")
    original = tmp_path / "original.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in as_original(ours, ffn).items()}, original)
    student = StudentConfig(hidden_size=16, **variant)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="original"):
        convert(original, tmp_path / "out")
    out = convert(original, tmp_path / "out", teacher=str(tmp_path / "teacher"), student=student)
    expected = AutoModelForCausalLM.from_pretrained(convert(checkpoint, tmp_path / "expected")).state_dict()
    found = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("whole_bytes", [0, 2**30], ids=["streamed", "whole"])
def test_the_original_codes_students_can_keep_the_eps_that_they_were_trained_with(
    tmp_path: Path, whole_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "WHOLE_BYTES", whole_bytes)
    ours = load_file(trained(tmp_path) / "model.safetensors")
    original, teacher = tmp_path / "original.safetensors", str(tmp_path / "teacher")
    save_file({name: tensor.contiguous() for name, tensor in as_original(ours, "all").items()}, original)
    sizes = StudentConfig(hidden_size=16)
    student = OriginalStudent(sizes=sizes, rms_norm_eps=0.5)
    folders = {
        0.5: convert(original, tmp_path / "own", teacher=teacher, student=student),
        1e-6: convert(original, tmp_path / "teachers", teacher=teacher, student=sizes),
    }
    scales = []
    for eps, folder in folders.items():
        assert json.loads((folder / "config.json").read_text())["rms_norm_eps"] == eps
        facts = json.loads((folder / "parity.json").read_text())
        assert facts["in_memory"]["relative_difference"] < 1e-5
        scales.append(facts["logit_scale"])
    assert scales[0] != pytest.approx(scales[1], rel=1e-2)


def as_original(ours: dict[str, torch.Tensor], ffn: str) -> dict[str, torch.Tensor]:
    """Write our tensors under the original code's names, in its orientation."""
    found = {"model.layers.0.self_attn.zoom_out.weight": torch.zeros(2, 2)}
    whole = {"projections.model.embed_tokens": "model.zoom.weight", "projections.lm_head": "zoom_down.weight"}
    attention = {"q_proj": "zoom_q", "k_proj": "zoom_k", "v_proj": "zoom_v", "input": "zoom_up"}
    for name, tensor in ours.items():
        layer = ".".join(name.split(".")[1:4])
        leaf = name.split(".")[-1]
        if name in whole:
            found[whole[name]] = tensor.T
        elif name == "gains.model.norm.weight":
            found["model.target_norm.weight"] = tensor
        elif name.startswith("gains."):
            found[f"{layer}.target_{name.split('.')[-2]}.weight"] = tensor
        elif ".self_attn." in name:
            original = "zoom_down" if leaf == "o_proj" else attention[leaf]
            found[f"{layer}.self_attn.{original}.weight"] = tensor.T if leaf == "o_proj" else tensor
        elif leaf == "input":
            found[f"{layer}.mlp.zoom_up.weight"] = tensor
        else:
            found[f"{layer}.mlp.zoom_{leaf.removesuffix('_proj')}.weight"] = tensor.T
    return found


@pytest.mark.parametrize("name", ["model.safetensors", "lrc_config.json", "SHA256SUMS"])
def test_a_checkpoint_with_a_flipped_bit_is_refused_and_the_file_named(tmp_path: Path, name: str) -> None:
    checkpoint = trained(tmp_path)
    content = bytearray((checkpoint / name).read_bytes())
    content[-2] ^= 1
    (checkpoint / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is damaged: {name}"):
        convert(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
