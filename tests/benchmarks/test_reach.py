"""The shares of a merged weight's gradient, against least squares and against the projections' own gradients."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import reach
from lrc.data.blocks import BatchPlan, TokenisedBlocks, open_blocks
from lrc.models.pair_model import PairModel, StepCounts
from lrc.verbs.train import train
from tests.models.test_pair import fill_random, make_pair
from tests.tiny import tiny_recipe, tiny_teacher, write_rows


def left_over(weight: Tensor, gradient: Tensor) -> Tensor:
    """What no `weight @ X` gives of a gradient, by least squares."""
    return gradient - weight @ torch.linalg.lstsq(weight, gradient).solution


@pytest.mark.parametrize("axis", [0, 1])
def test_sums_are_those_of_least_squares_and_of_all_pairs(axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    mean = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    gradients = [mean + 0.5 * torch.randn(9, 3, generator=generator, dtype=torch.float64) for _ in range(5)]
    basis = reach.reachable_space(weight if axis == 1 else weight.T, axis)
    assert basis is not None
    sums = reach.GradientSums(basis)
    for gradient in gradients:
        sums.add(gradient)
    found = sums.facts()
    outside = [left_over(weight, gradient) for gradient in gradients]
    pairs = [(one, other) for one in range(5) for other in range(5) if one != other]
    size = sum(float((gradient**2).sum()) for gradient in gradients) / 5
    size_out = sum(float((part**2).sum()) for part in outside) / 5
    signal = sum(float((gradients[one] * gradients[other]).sum()) for one, other in pairs) / 20
    signal_out = sum(float((outside[one] * outside[other]).sum()) for one, other in pairs) / 20
    assert found.size == pytest.approx(size, rel=1e-9)
    assert found.size - found.size_within == pytest.approx(size_out, rel=1e-9)
    assert found.signal == pytest.approx(signal, rel=1e-9)
    assert found.signal - found.signal_within == pytest.approx(signal_out, rel=1e-9)
    shares = found.shares
    assert shares["out_of_reach"] == pytest.approx(size_out / size, rel=1e-9)
    assert shares["signal_within"] == pytest.approx((signal - signal_out) / (size - size_out), rel=1e-9)
    assert shares["signal_out_of_reach"] == pytest.approx(signal_out / size_out, rel=1e-9)
    assert shares["gain_out_of_reach"] == pytest.approx(signal_out / signal, rel=1e-9)


def test_a_square_or_wide_weight_has_nothing_out_of_reach() -> None:
    assert reach.reachable_space(torch.randn(4, 4), 1) is None
    assert reach.reachable_space(torch.randn(3, 4), 1) is None
    assert reach.reachable_space(torch.randn(4, 3), 0) is None
    sums = reach.GradientSums(None)
    for _ in range(2):
        sums.add(torch.ones(4, 2))
    shares = sums.facts().shares
    assert shares == {
        "out_of_reach": 0.0,
        "signal_within": 1.0,
        "signal_out_of_reach": None,
        "gain_out_of_reach": None,
    }


def test_noise_has_no_signal() -> None:
    sums = reach.GradientSums(None)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sums.add(torch.randn(8, 8, generator=generator))
    facts = sums.facts()
    assert facts.size == pytest.approx(64, rel=0.05)
    assert abs(facts.signal) < 0.5


@pytest.fixture
def pair() -> PairModel:
    made = make_pair(tiny_teacher("llama").double(), 16)
    fill_random(made)
    return made.train()


@pytest.fixture
def blocks(tmp_path: Path) -> TokenisedBlocks:
    rows = open_blocks(str(write_rows(tmp_path / "rows.jsonl")), None, sequence_length=16, vocab_size=48)
    assert isinstance(rows, TokenisedBlocks)
    return rows


def test_what_is_summed_pulls_back_to_the_projections_gradients(pair: PairModel, blocks: TokenisedBlocks) -> None:
    plan = BatchPlan(seed=0, batch_size=2, accumulation=1)
    sums = reach.merged_gradients(pair, blocks, plan, range(3))
    assert all(value.grad is None for value in pair.trained().values())
    assert {kept.count for kept in sums.values()} == {3}
    assert len(sums) == 7 * len(pair.layers)
    for step in range(3):  # merged inside each forward, gradients added up by autograd
        (batch,) = reach.step_batches(blocks, plan, step)
        counts = StepCounts(labels=batch.num_labels, positions=batch.num_positions, sequences=batch.input_ids.shape[0])
        pair(batch.input_ids, batch.labels, batch.valid, counts).objective.backward()
    checked = 0
    for part in pair.layers:
        for name, (projection, axis) in part.plan.merges.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                continue  # clone terms use a writer's projection as well
            weight = part.teacher.get_parameter(name)
            assert axis == 1
            wanted = part.parameter(projection).grad
            assert wanted is not None
            pulled = weight.T @ sums[part.prefix + name].total
            torch.testing.assert_close(pulled.float(), wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
            checked += 1
    assert checked == 5 * len(pair.layers)


def test_kinds_are_added_up_over_layers() -> None:
    sums = {}
    for name, scale in (("model.layers.0.mlp.up_proj.weight", 1.0), ("model.layers.11.mlp.up_proj.weight", 2.0)):
        sums[name] = reach.GradientSums(None)
        for _ in range(2):
            sums[name].add(torch.full((2, 2), scale))
    found = reach.by_kind(sums)
    assert list(found) == ["mlp.up_proj", "all"]
    assert found["mlp.up_proj"] == found["all"] == reach.Reach(20.0, 20.0, 20.0, 20.0)
    assert reach.table(found).splitlines()[-1] == "| `all` | 0.0% | 100.0% | - | - |"


def test_the_command_reads_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_recipe(tmp_path, train__max_steps=2))
    monkeypatch.setattr(sys, "argv", ["reach.py", str(tmp_path / "run"), "--batches", "3"])
    reach.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| `mlp.down_proj` |") for line in lines)
    facts = json.loads((tmp_path / "run" / "train" / "reach.json").read_text())
    assert facts["weights"] == "checkpoint-2"
    assert facts["tokens_each"] == 64
    assert facts["shares"]["self_attn.o_proj"]["out_of_reach"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < facts["shares"]["mlp.up_proj"]["out_of_reach"] < 1
    trained = tmp_path / "run" / "train" / "checkpoint-2" / "model.safetensors"
    named = ["--batches", "3", "--weights", str(trained), "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["reach.py", str(tmp_path / "run"), *named])
    reach.main()
    assert json.loads((tmp_path / "out.json").read_text()) == facts | {"weights": "model.safetensors"}


@pytest.mark.parametrize(("steps", "accumulation", "first"), [(2, 1, 2), (2, 3, 6)])
def test_what_a_run_has_read_is_passed_over(tmp_path: Path, steps: int, accumulation: int, first: int) -> None:
    recipe = tiny_recipe(tmp_path, train__max_steps=steps, train__gradient_accumulation_steps=accumulation)
    checkpoint = train(recipe)
    assert reach.first_unseen(recipe, checkpoint) == reach.first_unseen(recipe, None) == first
    path = checkpoint / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"skipped_batches": [1], "sequences_per_step": 10}))  # of other processes
    assert reach.first_unseen(recipe, checkpoint) == -(-10 * (steps + 1) // recipe.train.batch_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "holds no recipe.yaml"),
        (["run", "--weights", "no.safetensors"], "There is no file no.safetensors"),
        (["run", "--weights", "train.jsonl"], "train.jsonl must be a safetensors file"),
        (
            ["run", "--weights", "teacher/model.safetensors"],
            "must hold the projections, gains and corrections of this run's student",
        ),
        (["run", "--batches", "1"], "--batches must be at least 2, found 1"),
    ],
)
def test_bad_arguments_end_with_exit_code_2(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(tiny_recipe(tmp_path, train__max_steps=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reach.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        reach.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
