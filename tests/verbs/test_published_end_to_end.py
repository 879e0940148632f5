"""The published commands on a tiny teacher, launched as their README says: train, save, convert, load."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from lrc.verbs.published_convert import main as convert_main
from lrc.verbs.published_train import main as train_main
from tests.tiny import teacher_folder, write_rows

FLAGS = (
    "--log_steps 2 --max_grad_norm 1.0 --learning-rate 1e-3 --gradient_accumulation_steps 1 --max_steps 4 "
    "--batch-size 3 --data-max-len 16 --save_steps 2 --check_data_cls_loss True --target_hidden_size 16 "
    "--kl_temperature 40 --warmup-ratio 0.005 --extra_tags general_train,arch,all_ffn,all_attn "
    "--use_accelerate True --str_ban_losses no --tie_word_emb_proj 1 --use_all_attn 1 --aux_loss_scale_factor 0.2"
)


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=Path.cwd())


@pytest.mark.slow
def test_the_published_commands_train_save_and_convert(tmp_path: Path) -> None:
    teacher = teacher_folder(tmp_path / "teacher", tie_word_embeddings=True)
    data = write_rows(tmp_path / "train.jsonl")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    paths = ["--dataset_name", str(data), "--raw-model-name", str(teacher), "--output_dir", str(tmp_path / "ckpts")]
    done = run(*launcher, "hf_trainer.py", *FLAGS.split(), *paths)
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoints = sorted((tmp_path / "ckpts" / "general_train-arch-all_ffn-all_attn").glob("*/train/checkpoint-4"))
    assert len(checkpoints) == 1
    facts = json.loads((checkpoints[0] / "lrc_config.json").read_text())
    objective = facts["recipe"]["objective"]
    assert (objective["temperature"], objective["kl_reduction"], objective["clone_error"]) == (40.0, "published", "raw")
    lines = [json.loads(line) for line in (checkpoints[0].parent / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in logged] == [2, 4]
    assert {name for line in logged for name in line["lm_loss_by_class"]} == {"even", "odd"}
    out = tmp_path / "student"
    convert = (
        f"--ckpt-path {checkpoints[0] / 'model.safetensors'} --target-hidden-size 16 --raw-model-name {teacher} "
        f"--save-path {out} --use-all-attn 1 --use-in-out-mlp 0 --tie-word-emb-proj 1"
    )
    done = run(sys.executable, "convert_ckpt.py", *convert.split())
    assert done.returncode == 0, done.stderr[-3000:]
    student = AutoModelForCausalLM.from_pretrained(out)
    assert student.config.hidden_size == 16
    assert student.config.tie_word_embeddings is True


@pytest.mark.parametrize("model", ["origin", "only_kd", "tiny_bert"])
def test_the_published_baselines_train_and_convert(model: str, tmp_path: Path) -> None:
    teacher = teacher_folder(tmp_path / "teacher", tie_word_embeddings=True)
    data = write_rows(tmp_path / "train.jsonl")
    paths = ["--dataset_name", str(data), "--raw-model-name", str(teacher), "--output_dir", str(tmp_path / "ckpts")]
    assert train_main([*FLAGS.split(), *paths, "--model_cls", model]) == 0
    (checkpoint,) = (tmp_path / "ckpts").glob("*/*/train/checkpoint-4")
    assert json.loads((checkpoint / "lrc_config.json").read_text())["method"] == model
    assert convert_main(["--ckpt-path", str(checkpoint), "--save-path", str(tmp_path / "student")]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.hidden_size == 16
