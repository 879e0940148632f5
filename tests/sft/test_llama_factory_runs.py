"""`llamafactory-cli train` takes the shipped files and the written one, on a CPU, where its environment has been made.

Run `scripts/llamafactory_env.sh` first (or name another folder in LLAMAFACTORY_VENV); without it these are skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrc.cli import main
from tests.sft.tiny_chats import sft_root

ROOT = Path(__file__).parents[2]
COMMAND = Path(os.environ.get("LLAMAFACTORY_VENV", ROOT / ".venv-llamafactory")) / "bin" / "llamafactory-cli"
SMALL = ["use_cpu=true", "bf16=false", "deepspeed=null", "plot_loss=false", "max_steps=2", "logging_steps=1"]
SMALL += ["preprocessing_num_workers=1", "dataloader_num_workers=0", "cutoff_len=128"]
SMALL += ["per_device_train_batch_size=2", "gradient_accumulation_steps=1"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMMAND.is_file(), reason="scripts/llamafactory_env.sh has not made its environment"),
]


def train(file: Path, student: Path, out: Path, *overrides: str) -> None:
    """Run it and check that a student came out, every tensor of which is not the one that went in."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(COMMAND), "train", str(file), f"output_dir={out}", *SMALL, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "train_results.json").read_text())["train_loss"] > 0
    before, after = load_file(student / "model.safetensors"), load_file(out / "model.safetensors")
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    assert all(value.isfinite().all() for value in after.values())
    assert [name for name in before if torch.equal(before[name].float(), after[name].float())] == []


@pytest.mark.parametrize("name", ["llama3-sft-full", "qwen-sft-full"])
def test_the_shipped_file_trains_with_paths_and_sizes_overridden(tmp_path: Path, name: str) -> None:
    root = sft_root(tmp_path)
    info = json.loads((ROOT / "configs" / "llama_factory" / "dataset_info.json").read_text())
    entry = info["ultrachat_200k"]
    del entry["hf_hub_url"], entry["split"]
    entry["file_name"] = str(root / "chats.jsonl")
    (root / "dataset_info.json").write_text(json.dumps(info))
    shipped = ROOT / "configs" / "llama_factory" / f"{name}.yaml"
    student = root / "student"
    paths = (f"model_name_or_path={student}", f"dataset_dir={root}")
    train(shipped, student, root / "out", *paths, "pure_bf16=false")


def test_the_written_file_trains(tmp_path: Path) -> None:
    root = sft_root(tmp_path)
    assert main(["sft", str(root / "recipe.yaml"), "--write-llama-factory", str(root / "factory")]) == 0
    train(root / "factory" / "sft.yaml", root / "student", root / "out")
