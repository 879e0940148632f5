"""The published command under `accelerate launch` with the shipped configurations, two processes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import teacher_folder, write_rows

pytestmark = pytest.mark.slow

FLAGS = (
    "--log_steps 1 --max_grad_norm 1.0 --learning-rate 1e-3 --gradient_accumulation_steps 1 --max_steps 3 "
    "--data-max-len 16 --save_steps 3 --check_data_cls_loss False --target_hidden_size 16 --kl_temperature 40 "
    "--warmup-ratio 0.005 --use_accelerate True --str_ban_losses no --tie_word_emb_proj 1 --use_all_attn 1 "
    "--aux_loss_scale_factor 0.2"
)
LAUNCHES = {
    "one": ("accel_cpu.yaml", {}),
    "ddp": ("accel_ddp.yaml", {"ACCELERATE_USE_CPU": "true"}),
    "fsdp": ("accel_fsdp.yaml", {}),
    "published": ("accel_ds_8h800_gas1.yaml", {}),
    "zero3": ("accel_ds_zero3.yaml", {}),
}


def losses(root: Path, name: str) -> list[float]:
    """Run the published command on as many processes as its name says; return the loss of each step."""
    config, environment = LAUNCHES[name]
    ranks = 1 if name == "one" else 2
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/{config}"]
    launcher += ["--main_process_port", "0", "--num_processes", str(ranks)]
    paths = ["--dataset_name", str(root / "train.jsonl"), "--raw-model-name", str(root / "teacher")]
    paths += ["--output_dir", str(root / "ckpts"), "--extra_tags", name, "--batch-size", str(4 // ranks)]
    done = subprocess.run(
        [*launcher, "hf_trainer.py", *FLAGS.split(), *paths],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (checkpoint,) = (root / "ckpts" / name).glob("*/train/checkpoint-3")
    lines = [json.loads(line) for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    teacher_folder(root / "teacher", tie_word_embeddings=True)
    write_rows(root / "train.jsonl")
    return root


@pytest.fixture(scope="module")
def expected(root: Path) -> list[float]:
    return losses(root, "one")


@pytest.mark.parametrize("name", [name for name in LAUNCHES if name != "one"])
def test_two_processes_train_as_one(root: Path, expected: list[float], name: str) -> None:
    if name in ("published", "zero3"):
        pytest.importorskip("deepspeed")
    assert losses(root, name) == pytest.approx(expected, rel=1e-5)
