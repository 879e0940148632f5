"""The published command under `accelerate launch` with the shipped configurations, two processes on the CPU."""

import json
import os
import socket
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
    "zero1": ("accel_ds_zero1.yaml", {}),
    "zero2": ("accel_ds.yaml", {}),
    "published": ("accel_ds_8h800_gas1.yaml", {}),
    "zero3": ("accel_ds_zero3.yaml", {}),
}


def command(root: Path, name: str, config: str, ranks: int, port: int, *launcher: str) -> list[str]:
    """Build the published command on `ranks` processes, under `accelerate launch` with a shipped configuration."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"configs/{config}", *launcher]
    start += ["--main_process_port", str(port), "--num_processes", str(ranks)]
    paths = ["--dataset_name", str(root / "train.jsonl"), "--raw-model-name", str(root / "teacher")]
    paths += ["--output_dir", str(root / "ckpts"), "--extra_tags", name, "--batch-size", str(4 // ranks)]
    return [*start, "hf_trainer.py", *FLAGS.split(), *paths]


def losses(root: Path, name: str) -> list[float]:
    """Run the published command on as many processes as its name says; return the loss of each step."""
    config, environment = LAUNCHES[name]
    done = subprocess.run(
        command(root, name, config, 1 if name == "one" else 2, 0),
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return logged_losses(root, name)


def logged_losses(root: Path, name: str) -> list[float]:
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
    if LAUNCHES[name][0].startswith("accel_ds"):
        pytest.importorskip("deepspeed")
    assert losses(root, name) == pytest.approx(expected, rel=1e-5)


def test_two_machines_train_as_one_process(root: Path, expected: list[float]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    machines = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--machine_rank"]
    launches = []
    for rank in range(2):
        with (root / f"machine-{rank}.txt").open("w") as output:
            started = subprocess.Popen(
                command(root, "machines", "accel_multinode.yaml", 2, port, *machines, str(rank)),
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        launches.append(started)
    try:
        codes = [launch.wait(timeout=400) for launch in launches]
    finally:
        for launch in launches:
            launch.kill()
    assert codes == [0, 0], [(root / f"machine-{rank}.txt").read_text()[-3000:] for rank in range(2)]
    assert logged_losses(root, "machines") == pytest.approx(expected, rel=1e-5)
