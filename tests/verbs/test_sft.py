"""`lrc sft` end to end: a plain folder that learnt from chats, whole or not at all, resumed bit for bit."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrc.cli import main
from lrc.config import load_recipe
from lrc.errors import ConfigError
from lrc.models.folder import ModelTensors
from lrc.training import strategy
from lrc.verbs.sft import _processes, _round_as_stored, sft
from tests.sft.killed_run import killed_after
from tests.sft.tiny_chats import CHATML, sft_root, snapshot, turns

KEPT_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# peft 0.21 asks transformers 5.23 for an attribute by its old name
peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return sft_root(tmp_path)


def run(root: Path, *overrides: str, **flags: Any) -> Path:
    return sft(load_recipe(root / "recipe.yaml", overrides), **flags)


def facts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "sft.json").read_text())
    return found


def test_the_result_is_a_plain_folder_that_learnt(root: Path) -> None:
    assert main(["sft", str(root / "recipe.yaml")]) == 0
    out = root / "run" / "sft"
    for name in KEPT_FILES:
        assert (out / name).read_bytes() == (root / "student" / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out).chat_template == CHATML
    before, after = load_file(root / "student" / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape and before[name].dtype == after[name].dtype for name in after)
    assert all(not torch.equal(before[name], after[name]) for name in after)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    found = facts(out)
    assert found["held_out"]["after"]["cross_entropy"] < 0.9 * found["held_out"]["before"]["cross_entropy"]
    assert (found["chats"]["rows"], found["chats"]["sequences"], found["steps"]) == (24, 24, 12)
    assert found["versions"]["trl"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert load_recipe(out / "recipe.yaml") == load_recipe(root / "recipe.yaml")
    assert not (root / "run" / ".sft").exists()


def test_the_teacher_keeps_the_student_near(root: Path) -> None:
    near = {
        weight: facts(run(root, f"sft.teacher_kl={weight}", f"run={root / f'run{weight}'}", "sft.learning_rate=1e-2"))
        for weight in (0.001, 5.0)
    }
    kl = {weight: found["held_out"]["after"]["kl"] for weight, found in near.items()}
    assert kl[5.0] < 0.8 * kl[0.001]
    line = json.loads((root / "run5.0" / "sft" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["kl_loss"] > 0


def test_packed_chats_fill_fewer_rows(root: Path) -> None:
    longer = "sft.sequence_length=256"
    plain, packed = (run(root, longer, f"sft.packing={flag}", f"run={root / flag}") for flag in ("false", "true"))
    assert facts(packed)["rows"] < facts(plain)["rows"] == 24
    assert facts(packed)["chats"] == facts(plain)["chats"]


@peft_warns
def test_lora_is_merged_into_the_weights_of_linear_layers_alone(root: Path) -> None:
    out = run(root, "sft.lora_rank=2", "sft.teacher_kl=0.5")
    before, after = load_file(root / "student" / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if "_proj" in name}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2
    assert facts(out)["held_out"]["after"]["cross_entropy"] < facts(out)["held_out"]["before"]["cross_entropy"]


def test_a_killed_run_goes_on_and_ends_equal(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(root, f"run={root / 'whole'}", "sft.teacher_kl=0.5")
    with killed_after(7, monkeypatch):
        run(root, "sft.teacher_kl=0.5")
    assert not (root / "run" / "sft").exists()
    assert main(["sft", str(root / "recipe.yaml"), "sft.teacher_kl=0.5"]) == 2  # neither --resume nor --overwrite
    assert main(["sft", str(root / "recipe.yaml"), "sft.teacher_kl=0.25", "--resume", "auto"]) == 2  # another run's
    resumed = run(root, "sft.teacher_kl=0.5", resume="auto")
    one, other = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert facts(resumed)["loss"] == pytest.approx(sum(line["loss"] for line in lines) / 6)
    assert facts(resumed)["loss"] == facts(whole)["loss"]


def test_a_dry_run_counts_the_chats_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(root)
    assert main(["sft", str(root / "recipe.yaml"), "--dry-run"]) == 0
    assert snapshot(root) == before
    said = capsys.readouterr().err
    assert "24 sequences of 24 rows" in said
    assert "held out: 4 sequences of 4 rows" in said


def spoil(root: Path, *rows: Any) -> None:
    good = (root / "chats.jsonl").read_text().splitlines()[:2]
    (root / "chats.jsonl").write_text("\n".join([*good, *map(json.dumps, rows)]) + "\n")


def test_bad_chats_are_refused_by_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row, said in (
        ({"messages": turns("a", "b")[::-1]}, "turn 1 of 2: the role must be 'user', found 'assistant'"),
        ({"messages": turns("a", "")}, "turn 2 of 2: the content of the assistant is empty"),
        ({"text": "a"}, "no conversations, messages, or instruction and output"),
    ):
        spoil(root, row)
        before = snapshot(root)
        assert main(["sft", str(root / "recipe.yaml"), "--dry-run"]) == 2
        assert snapshot(root) == before
        assert f"{root / 'chats.jsonl'}:3: {said}" in capsys.readouterr().err
        assert main(["sft", str(root / "recipe.yaml")]) == 2
        assert snapshot(root) == before


def test_over_long_chats_are_counted(root: Path) -> None:
    spoil(root, {"messages": turns("a", "b" * 200)})
    assert facts(run(root))["chats"]["truncated"] == 1
    assert facts(run(root, "sft.over_long=drop", overwrite=True))["chats"]["dropped"] == 1


def test_over_long_held_out_chats_are_said_and_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (root / "held_out.jsonl").open("a") as stream:
        stream.write(json.dumps({"messages": turns("a", "b" * 200)}) + "\n")
    found = facts(run(root, "sft.max_steps=1"))["held_out"]["chats"]
    assert (found["rows"], found["sequences"], found["truncated"]) == (5, 5, 1)
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "held out: " in line)
    assert "5 sequences of 5 rows" in said
    assert said.endswith("1 cut off")


def test_an_output_that_exists_is_not_replaced_unasked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "run" / "sft").mkdir(parents=True)
    (root / "run" / "sft" / "mine").write_text("mine")
    assert main(["sft", str(root / "recipe.yaml"), "--overwrite"]) == 2
    assert "holds mine, but nothing" in capsys.readouterr().err
    (root / "run" / "sft" / "sft.json").write_text("{}")
    assert main(["sft", str(root / "recipe.yaml")]) == 2
    assert "Use --overwrite" in capsys.readouterr().err
    assert main(["sft", str(root / "recipe.yaml"), "--overwrite", "sft.max_steps=1"]) == 0
    assert not (root / "run" / "sft" / "mine").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(root: Path) -> None:
    settings = ("sft.teacher_kl=0.5", "sft.max_steps=4")
    one = run(root, *settings, f"run={root / 'one'}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lrc"]
    arguments = ["sft", str(root / "recipe.yaml"), *settings, "sft.batch_size=2"]
    done = subprocess.run([*launch, *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    two = root / "run" / "sft"
    assert (facts(one)["processes"], facts(two)["processes"]) == (1, 2)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (one, two)]
    for line, other in zip(*(map(json.loads, each) for each in lines), strict=True):
        assert other["kl_loss"] == pytest.approx(line["kl_loss"], rel=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_processes_wait_for_the_first_one_s_chats_as_long_as_training_does(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    asked: dict[str, Any] = {}
    joined = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(strategy, "PartialState", lambda **options: asked.update(options) or joined)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _processes(torch.device(device)) is joined
    assert asked == {"cpu": device == "cpu", "timeout": timedelta(hours=strategy.USUAL_HOURS)}


def test_processes_that_do_not_see_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy, "PartialState", lambda **options: SimpleNamespace(num_processes=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were launched but accelerate joins 1: .* use torchrun"):
        _processes(torch.device("cuda"))


def test_sharded_training_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert main(["sft", str(root / "recipe.yaml")]) == 2
    assert "--write-llama-factory" in capsys.readouterr().err
    assert not (root / "run").exists()


def test_a_fine_tuned_student_keeps_each_tensors_dtype(tmp_path: Path) -> None:
    model = nn.Module()
    model.wide, model.narrow, model.new = (nn.Parameter(torch.rand(3)) for _ in range(3))
    model.register_buffer("bias", torch.rand(3))
    stored = {"wide": torch.zeros(3), "narrow": torch.zeros(3, dtype=torch.bfloat16), "bias": torch.zeros(3)}
    save_file({"a": torch.zeros(1, dtype=torch.bfloat16), **stored}, tmp_path / "model.safetensors")
    _round_as_stored(model, ModelTensors(tmp_path))
    found = {name: value.dtype for name, value in (*model.named_parameters(), *model.named_buffers())}
    assert found == {
        "wide": torch.float32,
        "narrow": torch.bfloat16,
        "new": torch.bfloat16,
        "bias": torch.float32,
    }
