"""One process, DDP, FSDP2 and ZeRO give the same losses and student, and go on from each other's checkpoints."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrc.data.folder_hash import find_damage, write_sums
from lrc.models.stored_tensors import StoredTensors, stored_files
from lrc.training.launch import write_recipe
from lrc.verbs.convert import convert
from tests.tiny import teacher_folder, tiny_recipe, write_rows

pytestmark = pytest.mark.slow

STEPS, HALF = 12, 6
ZERO = ("zero1", "zero2", "zero3") if importlib.util.find_spec("deepspeed") else ()
STRATEGIES = ("ddp", "fsdp2", *ZERO)
SHARDED = ("fsdp2", *ZERO[2:])
FILES = ("model.safetensors", "optimizer.safetensors")
RESUMES = {
    # name: (strategy that saved, strategy that goes on); "one" is one process
    "one-to-ddp": ("one", "ddp"),
    "one-to-fsdp2": ("one", "fsdp2"),
    "one-to-zero2": ("one", "zero2"),
    "one-to-zero3": ("one", "zero3"),
    "ddp-to-one": ("ddp", "one"),
    "fsdp2-to-one": ("fsdp2", "one"),
    "zero2-to-one": ("zero2", "one"),
    "zero3-to-one": ("zero3", "one"),
    "fsdp2-to-zero3": ("fsdp2", "zero3"),
    "zero3-to-fsdp2": ("zero3", "fsdp2"),
    "fsdp2-to-fsdp2": ("fsdp2", "fsdp2"),
    "zero3-to-zero3": ("zero3", "zero3"),
    "odd-fsdp2-to-one": ("odd-fsdp2", "one"),
    "odd-one-to-fsdp2": ("odd-one", "fsdp2"),
    "odd-fsdp2-to-zero3": ("odd-fsdp2", "zero3"),
}


def runnable(*names: str) -> list[str]:
    return [name for name in names if ZERO or "zero" not in name]


RESUMES = {name: RESUMES[name] for name in runnable(*RESUMES)}
MUON_RESUMES = {"muon-one-to-fsdp2": ("one", "fsdp2"), "muon-fsdp2-to-one": ("fsdp2", "one")}


def run_jobs(root: Path, jobs: list[dict[str, Any]]) -> None:
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("rank_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(root / "jobs.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.split(" ")[0] in {job["name"] for job in jobs}]
    expected = [f"{job['name']} {[0] * job['ranks']}" for job in jobs]
    assert lines == expected, done.stdout


def job(root: Path, name: str, strategy: str, *, resume: str | None = None, **changes: Any) -> dict[str, Any]:
    """Describe a run: 8 sequences a step, in 2 micro-batches on one process and in 2 on each of two."""
    ranks = 1 if strategy == "one" else 2
    settings = {
        "start__method": "random",
        "objective__lm_weight": 0.5,
        "train__max_steps": STEPS,
        "train__log_steps": 1,
        "train__save_steps": HALF,
        "train__seed": 1,
        "train__batch_size": 4 // ranks,
        "train__gradient_accumulation_steps": 2,
        "train__strategy": "auto" if strategy == "one" else strategy,
        **changes,
    }
    write_recipe(root / f"{name}.yaml", tiny_recipe(root, run=str(root / name), **settings))
    return {"name": name, "recipe": str(root / f"{name}.yaml"), "ranks": ranks, "resume": resume}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("strategies")
    tiny_recipe(root)
    write_rows(root / "train.jsonl", ragged=True)
    jobs = [job(root, name, name) for name in ("one", *STRATEGIES)]
    # rows that two ranks can't share evenly
    odd = {
        "teacher": str(teacher_folder(root / "odd", "qwen2", hidden_size=33, head_dim=8)),
        "student__hidden_size": 15,
    }
    jobs += [job(root, f"odd-{name}", name, **odd) for name in ("one", *SHARDED)]
    for name, (saved, other) in RESUMES.items():
        # the recipe's accumulation is wrong for the other number of ranks, and is corrected
        changes = {"train__gradient_accumulation_steps": 1, **(odd if name.startswith("odd-") else {})}
        jobs.append(job(root, name, other, resume=str(checkpoint(root / saved, HALF)), **changes))
    tied = {"teacher": str(teacher_folder(root / "tied", tie_word_embeddings=True)), "train__max_steps": 4}
    tied |= {"student": {"hidden_size": 16, "tie_embedding_projection": True}}
    tied["train__activation_checkpointing"] = "selective"
    jobs += [job(root, f"{name}-tied", name, **tied) for name in SHARDED]
    jobs.append(job(root, "one-tied", "one", **{**tied, "train__activation_checkpointing": "none"}))
    # rows that two ranks can't share out evenly
    muon = {"teacher": str(teacher_folder(root / "odd", "qwen2", hidden_size=33, head_dim=8))}
    muon |= {"train__optimizer": "muon", "train__learning_rate": 1e-3, "train__rate_shares": {"o_proj": 0.2}}
    jobs += [job(root, f"{name}-muon", name, **muon) for name in ("one", "ddp", "fsdp2")]
    added = {**muon, "phases__dense_share": 1.0, "phases__dense_form": "complement", "phases__dense_tensors": "all"}
    jobs += [job(root, f"{name}-complement", name, **added) for name in ("one", "ddp", "fsdp2")]
    for name, (saved, other) in MUON_RESUMES.items():
        resume = str(root / f"{saved}-muon" / "train" / f"checkpoint-{HALF}")
        jobs.append(job(root, name, other, resume=resume, **muon))
    once = {"train__merge": "step"}
    again = {**tied, "train__activation_checkpointing": "layer"}
    jobs += [job(root, "fsdp2-once", "fsdp2", **once), job(root, "fsdp2-tied-once", "fsdp2", **again, **once)]
    low = {"train__compute_dtype": "bfloat16", "train__max_steps": 4}
    jobs += [job(root, f"{name}-low", name, **low) for name in ("one", "fsdp2", *ZERO[1:])]
    whole = {"train__max_steps": 4, "train__gradient_accumulation_steps": 1}
    jobs += [
        job(root, f"{name}-gas1", name, train__batch_size=size, **whole) for name, size in (("one", 8), ("ddp", 4))
    ]
    jobs += [
        job(root, f"{name}-micro", name, train__max_steps=4, train__merge="micro_batch") for name in ("one", "ddp")
    ]
    run_jobs(root, jobs)
    return root


def lines_of(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == kind}


def losses_of(run: Path) -> dict[int, float]:
    return {step: line["loss"] for step, line in lines_of(run, "train").items()}


def checkpoint(run: Path, step: int) -> Path:
    return run / "train" / f"checkpoint-{step}"


def tensors_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint whole, whatever wrote it."""
    return dict(StoredTensors(stored_files(folder, name)))


def assert_near(found: dict[int, float], expected: dict[int, float], limit: float) -> None:
    assert set(found) <= set(expected)
    assert max(abs(loss - expected[step]) for step, loss in found.items()) <= limit


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_and_norms_are_those_of_one_process(root: Path, strategy: str) -> None:
    found = losses_of(root / strategy)
    assert list(found) == list(range(1, STEPS + 1))
    assert_near(found, losses_of(root / "one"), 1e-5)
    norms, expected = (
        {step: line["gradient_norm"] for step, line in lines_of(root / name, "train").items()}
        for name in (strategy, "one")
    )
    assert norms == pytest.approx(expected, rel=1e-4)
    kl, expected_kl = (lines_of(root / name, "held_out")[STEPS]["kl"] for name in (strategy, "one"))
    assert kl == pytest.approx(expected_kl, abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_convert_to_the_same_student(root: Path, strategy: str) -> None:
    students = []
    for name in ("one", strategy):
        out = root / f"student-{name}"
        if not out.exists():
            convert(root / name / "train" / f"checkpoint-{STEPS}", out)
        students.append(load_file(out / "model.safetensors"))
    expected, found = students
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_hold_the_trained_tensors_and_nothing_of_the_teacher(root: Path, strategy: str) -> None:
    for file in FILES:
        expected, found = (tensors_of(checkpoint(root / name, HALF), file) for name in ("one", strategy))
        assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
            name: (value.shape, value.dtype) for name, value in expected.items()
        }
        for name, value in expected.items():
            # second moments are near 1e-6: an absolute limit would compare them with nothing
            assert float((found[name] - value).norm()) <= 1e-4 * float(value.norm()), name


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2-muon", "odd-fsdp2"])
def test_each_rank_writes_its_rows_and_no_more(root: Path, name: str) -> None:
    folder = checkpoint(root / name, HALF)
    stems = ("model", "optimizer")
    ranks = ("00001-of-00002", "00002-of-00002")
    files = {f"{stem}-{rank}.safetensors" for stem in stems for rank in ranks}
    assert {path.name for path in folder.iterdir()} == files | {"SHA256SUMS", "lrc_config.json", "state.json"}
    assert {path.stat().st_mode & 0o044 for path in folder.iterdir()} == {0o044}
    assert find_damage(folder) is None
    for stem in stems:
        first, second = (load_file(folder / f"{stem}-{rank}.safetensors") for rank in ranks)
        assert second.keys() == {key for key, value in first.items() if value.dim()}
        for key, whole in tensors_of(folder, f"{stem}.safetensors").items():
            if not whole.dim():
                continue
            assert len(first[key]) == -(-len(whole) // 2) < len(whole)
            assert torch.equal(torch.cat([first[key], second[key]]), whole)


@pytest.mark.parametrize("name", runnable("zero3", "odd-zero3"))
def test_each_rank_of_zero_3_writes_its_flat_pieces(root: Path, name: str) -> None:
    folder = checkpoint(root / name, HALF)
    for stem in ("model", "optimizer"):
        first, second = (load_file(folder / f"{stem}-0000{rank}-of-00002.safetensors") for rank in (1, 2))
        for key, whole in tensors_of(folder, f"{stem}.safetensors").items():
            if not whole.dim():
                continue
            assert first[key].numel() == -(-whole.numel() // 2)
            assert torch.equal(torch.cat([first[key], second[key]]), whole.flatten())


@pytest.mark.parametrize("name", runnable("fsdp2", "odd-fsdp2", "zero3"))
def test_a_checkpoint_in_pieces_converts_to_the_student_of_a_whole_one(root: Path, tmp_path: Path, name: str) -> None:
    folder, whole = checkpoint(root / name, STEPS), tmp_path / "whole"
    whole.mkdir()
    pieces = [load_file(folder / f"model-0000{rank}-of-00002.safetensors") for rank in (1, 2)]
    shapes = {key: value.shape for key, value in tensors_of(folder, "model.safetensors").items()}
    joined = {key: torch.cat([piece[key] for piece in pieces]).reshape(shape) for key, shape in shapes.items()}
    save_file(joined, whole / "model.safetensors")
    shutil.copy(folder / "lrc_config.json", whole)
    # a file's name stands for the folder, so that the published convert command needs no other flag
    named = [folder / f"model{which}.safetensors" for which in ("", "-00002-of-00002")]
    students = []
    for number, source in enumerate((whole, folder, *named)):
        out = convert(source, tmp_path / str(number))
        students.append((out / "model.safetensors").read_bytes())
    assert len(set(students)) == 1


@pytest.mark.parametrize("name", runnable("odd-fsdp2", "odd-zero3"))
def test_rows_that_ranks_share_unevenly_train_as_whole_ones(root: Path, name: str) -> None:
    assert_near(losses_of(root / name), losses_of(root / "odd-one"), 1e-5)


@pytest.mark.parametrize("name", RESUMES)
def test_another_number_of_ranks_or_strategy_goes_on_with_the_same_data(root: Path, name: str) -> None:
    saved, _ = RESUMES[name]
    found = losses_of(root / name)
    assert list(found) == list(range(HALF + 1, STEPS + 1))
    assert_near(found, losses_of(root / saved), 1e-6)
    tokens = {step: line["tokens"] for step, line in lines_of(root / name, "train").items()}
    assert all(line["tokens"] == tokens[step] for step, line in lines_of(root / saved, "train").items() if step > HALF)


@pytest.mark.parametrize("name", runnable("fsdp2-to-fsdp2", "zero3-to-zero3"))
def test_a_sharded_run_that_goes_on_from_its_own_checkpoint_ends_as_the_whole_run(root: Path, name: str) -> None:
    whole, _ = RESUMES[name]
    for file in FILES:
        expected, found = (tensors_of(checkpoint(root / run, STEPS), file) for run in (whole, name))
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert float((found[key] - value).norm()) <= 1e-4 * float(value.norm()), key


@pytest.mark.parametrize(("name", "expected"), [("fsdp2-once", "one"), ("fsdp2-tied-once", "one-tied")])
def test_a_sharded_pair_can_merge_once_a_step(root: Path, name: str, expected: str) -> None:
    assert_near(losses_of(root / name), losses_of(root / expected), 1e-5)
    norms, expected_norms = (
        {step: line["gradient_norm"] for step, line in lines_of(root / run, "train").items()}
        for run in (name, expected)
    )
    assert norms == pytest.approx(expected_norms, rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_muon_moves_weights_of_two_ranks_as_those_of_one(root: Path, strategy: str) -> None:
    assert_near(losses_of(root / f"{strategy}-muon"), losses_of(root / "one-muon"), 1e-5)
    for file in FILES:
        found, expected = (tensors_of(checkpoint(root / f"{name}-muon", HALF), file) for name in (strategy, "one"))
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name].shape == value.shape
            assert float((found[name] - value).norm()) <= 1e-3 * float(value.norm()) + 1e-9, name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_updates_that_start_at_zero_move_on_all_ranks_in_units_of_the_merged_rows(root: Path, strategy: str) -> None:
    assert_near(losses_of(root / f"{strategy}-complement"), losses_of(root / "one-complement"), 1e-5)
    for file in FILES:
        found, expected = (
            tensors_of(checkpoint(root / f"{name}-complement", HALF), file) for name in (strategy, "one")
        )
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert float((found[name] - value).norm()) <= 1e-3 * float(value.norm()) + 1e-9, name


@pytest.mark.parametrize("name", MUON_RESUMES)
def test_muon_goes_on_sharded_and_whole(root: Path, name: str) -> None:
    found = losses_of(root / name)
    assert list(found) == list(range(HALF + 1, STEPS + 1))
    assert_near(found, losses_of(root / f"{MUON_RESUMES[name][0]}-muon"), 1e-5)


@pytest.mark.parametrize("strategy", SHARDED)
def test_a_tied_pair_is_sharded_with_activation_checkpointing(root: Path, strategy: str) -> None:
    assert_near(losses_of(root / f"{strategy}-tied"), losses_of(root / "one-tied"), 1e-5)


@pytest.mark.parametrize("strategy", ["fsdp2", *ZERO[1:]])
def test_a_bfloat16_teacher_is_sharded_beside_float32_projections(root: Path, strategy: str) -> None:
    found, expected = losses_of(root / f"{strategy}-low"), losses_of(root / "one-low")
    assert len(found) == 4
    assert found == pytest.approx(expected, rel=5e-3)
    tensors = tensors_of(checkpoint(root / f"{strategy}-low", 4), "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_a_preempted_checkpoint_gets_its_measure_before_anything_is_trained(tmp_path: Path) -> None:
    tiny_recipe(tmp_path)
    write_rows(tmp_path / "train.jsonl", ragged=True)
    steps = {"train__max_steps": 4, "train__save_steps": 2, "train__evaluate_steps": 2}
    run_jobs(tmp_path, [job(tmp_path, "whole", "one", **steps)])
    saved = tmp_path / "whole" / "train" / "checkpoint-2"
    state = json.loads((saved / "state.json").read_text())
    measured, state["held_out_kl"] = state["held_out_kl"], None
    (saved / "state.json").write_text(json.dumps(state))
    write_sums(saved)
    names = ("ddp", *SHARDED)
    run_jobs(tmp_path, [job(tmp_path, name, name, resume=str(saved), **steps) for name in names])
    for name in names:
        again = tmp_path / name / "train" / "checkpoint-2"
        assert json.loads((again / "state.json").read_text())["held_out_kl"] == pytest.approx(measured, rel=1e-5)
        for file in FILES:
            kept, expected = tensors_of(again, file), load_file(saved / file)
            assert set(kept) == set(expected)
            assert all(torch.equal(kept[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", ["gas1", "micro"])
def test_ddp_that_merges_in_each_micro_batch_has_the_gradient_of_one_process(root: Path, kind: str) -> None:
    """AdamW's update does not depend on the gradient's size, so losses alone would not show a mean over ranks."""
    norms, expected = (
        {step: line["gradient_norm"] for step, line in lines_of(root / f"{name}-{kind}", "train").items()}
        for name in ("ddp", "one")
    )
    assert len(norms) == 4
    assert norms == pytest.approx(expected, rel=1e-4)
    weights, expected_weights = (
        load_file(root / f"{name}-{kind}" / "train" / "checkpoint-4" / "model.safetensors") for name in ("ddp", "one")
    )
    assert set(weights) == set(expected_weights)
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=0)
