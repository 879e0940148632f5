"""Code meant for a GPU runs on an emulated one as on the CPU: no tensor on the wrong device, no needless waiting.

The kernels are the CPU's, so this says nothing about a GPU's arithmetic, memory or speed, and one process has one GPU.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.emulated_gpu.emulate import build, compiler, run_on
from tests.tiny import teacher_folder, tiny_recipe, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="no C++ compiler")]

PUBLISHED = {
    "temperature": 40,
    "kl_reduction": "published",
    "lm_weight": 1,
    "kl_weight": 1,
    "clone_error": "raw",
    "clone_reduction": "sum",
    "attention_output_space": "teacher",
}
RANDOM: dict[str, Any] = {"start": {"method": "random"}, "data__held_out": None}
CASES: dict[str, dict[str, Any]] = {
    "calibrated": {"student": {"hidden_size": 16, "correction": "mlp"}},
    "muon": {**RANDOM, "train__optimizer": "muon"},
    "ragged": {**RANDOM, "train__gradient_accumulation_steps": 2, "train__batch_size": 2},
    "published": {**RANDOM, "objective": PUBLISHED},
    "weighted terms": {**RANDOM, "objective": {"clone_term_weights": {"attn-q": 0.5}, "clone_depth_slope": 0.5}},
    "layer": {**RANDOM, "train__activation_checkpointing": "layer"},
    "selective": {**RANDOM, "train__activation_checkpointing": "selective"},
    "int8": {**RANDOM, "teacher_weights": {"format": "int8"}},
    "nf4": {**RANDOM, "teacher_weights": {"format": "nf4"}},
    "offload": {**RANDOM, "teacher_weights": {"offload": "cpu"}},
    "dense": {**RANDOM, "phases": {"dense_share": 0.5, "dense_tensors": "all"}},
    "complement": {**RANDOM, "phases": {"dense_share": 0.5, "dense_form": "complement"}, "train__optimizer": "muon"},
    "tied": {**RANDOM, "student": {"hidden_size": 16, "tie_embedding_projection": True}},
    "channel": {"start": {"method": "channel", "tokens": 256, "channel_score": "normalised"}, "data__held_out": None},
    "only_kd": {**RANDOM, "method": "only_kd"},
    "tiny_bert": {**RANDOM, "method": "tiny_bert"},
    "classes": {**RANDOM, "train__log_data_classes": True},
    "gemma": {"student": {"hidden_size": 16, "correction": "outputs"}, "data__held_out": None},
}
BFLOAT16 = {"bfloat16": {"train__compute_dtype": "bfloat16"}}
"""Its products round in another order on a CPU (`lrc/clone/products.py`), so its losses are only near."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="module")
def results(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What all jobs gave, by device."""
    root = tmp_path_factory.mktemp("gpu")
    tiny_recipe(root)
    write_rows(root / "ragged.jsonl", ragged=True)
    jobs = [{"name": name, "root": str(root), "changes": changes} for name, changes in (CASES | BFLOAT16).items()]
    jobs.append({"name": "sft", "root": str(root)})
    jobs[0]["scores"] = True
    jobs[-3]["changes"]["teacher"] = str(teacher_folder(root / "gemma", "gemma3_text"))
    jobs[2]["changes"]["data__train"] = str(root / "ragged.jsonl")
    (root / "jobs.json").write_text(json.dumps(jobs))
    script = str(Path(__file__).with_name("gpu_runs.py"))
    found = {}
    for device in ("cuda", "cpu"):
        done = run_on(library, [script, str(root / "jobs.json"), device])
        assert done.returncode == 0, done.stderr[-3000:]
        found[device] = json.loads((root / f"RESULTS-{device}.json").read_text())
    return found


@pytest.mark.parametrize("name", CASES | BFLOAT16)
def test_a_run_gives_on_the_gpu_what_it_gives_on_the_cpu(results: dict[str, dict[str, Any]], name: str) -> None:
    on_gpu, on_cpu = (results[device][name] for device in ("cuda", "cpu"))
    assert "error" not in on_gpu, on_gpu
    limit = 0.05 if name in BFLOAT16 else 1e-4
    assert len(on_gpu["losses"]) == 6
    assert on_gpu["losses"] == pytest.approx(on_cpu["losses"], rel=limit)
    assert on_gpu["held_out"] == pytest.approx(on_cpu["held_out"], rel=limit)


def test_fine_tuning_gives_on_the_gpu_what_it_gives_on_the_cpu(results: dict[str, dict[str, Any]]) -> None:
    on_gpu, on_cpu = (results[device]["sft"] for device in ("cuda", "cpu"))
    assert "error" not in on_gpu, on_gpu
    assert on_gpu["machine"].startswith("cuda")
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-4)
    assert on_gpu["chats"] == pytest.approx(on_cpu["chats"], rel=1e-4)


def test_scores_of_a_student_come_from_the_gpu(results: dict[str, dict[str, Any]]) -> None:
    on_gpu, on_cpu = (results[device]["calibrated"] for device in ("cuda", "cpu"))
    assert on_gpu["machine"] == "cuda"
    assert on_gpu["scored"] == pytest.approx(on_cpu["scored"], rel=0.02)  # bfloat16 on a GPU


@pytest.mark.parametrize("name", CASES | BFLOAT16)
def test_a_step_waits_for_the_gpu_no_more_than_it_must(results: dict[str, dict[str, Any]], name: str) -> None:
    found = results["cuda"][name]
    # transformers looks whether positions are of one document, for each kind of mask
    masks = 2 if name == "gemma" else 1
    assert set(found["waits_forward"][1:]) <= {masks}, "a forward pass in training"
    # the gradient's norm, then the loss, for which nothing is left to wait
    assert set(found["waits_update"][1:]) == {2}, "an optimiser step"


def test_the_benchmark_of_a_step_runs_on_a_gpu_and_measures_its_memory(library: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("gpu_script.py"))
    flags = ["--shapes", "tiny", "--dtype", "bfloat16", "--rounds", "1", "--accumulation", "1,2"]
    done = run_on(library, [script, "benchmarks/step.py", *flags, "--out", str(tmp_path / "step.json")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "device emulated, dtype bfloat16" in done.stdout
    facts = json.loads((tmp_path / "step.json").read_text())
    (shape,) = facts["shapes"]
    peaks = {way["title"]: way["peak_bytes"] for way in shape["ways"]}
    assert 0 < peaks["ours, layer checkpointing"] < peaks["ours"] < peaks["plain"]
