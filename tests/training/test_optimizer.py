"""Muon against the polar factor by singular values, in units of each row's size, whatever the stacks."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrc.config import TrainConfig
from lrc.errors import ConfigError
from lrc.models.moments import MOMENTS, moment_shapes
from lrc.training import optimizer as module
from lrc.training.optimizer import (
    GAIN_SHARE,
    Muon,
    check_rate_shares,
    make_optimizer,
    orthogonalise,
    parameter_groups,
    rate_share,
    row_sizes,
    set_rate,
)


def polar(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def parameter(*shape: int, seed: int = 0, size: float = 1.0) -> nn.Parameter:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.Parameter(values * size)


@pytest.mark.parametrize("shape", [(3, 24, 8), (3, 8, 24), (1, 8, 8)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonalise(matrices)
    for matrix, result in zip(matrices, found, strict=True):
        values = torch.linalg.svdvals(result)
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3
        wanted = polar(matrix)
        assert float((result * wanted).sum() / (result.norm() * wanted.norm())) > 0.98


def test_the_gradients_size_does_not_matter() -> None:
    matrix = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(orthogonalise(matrix * 1e6), orthogonalise(matrix), rtol=1e-10, atol=1e-12)


def plain_newton_schulz(matrix: Tensor) -> Tensor:
    """The iteration as it is written down, on the whole matrix in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    result = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = result @ result.T
        result = a * result + b * square @ result + c * square @ square @ result
    return result


def with_spectrum(rows: int, columns: int, smallest: float) -> Tensor:
    """A matrix whose singular values fall evenly, on a logarithmic scale, from 1 to the smallest."""
    size = min(rows, columns)
    left, right = (torch.linalg.qr(parameter(n, size, seed=n).detach())[0] for n in (rows, columns))
    return left * torch.logspace(0, math.log10(smallest), size, dtype=torch.float64) @ right.T


@pytest.mark.parametrize("shape", [(96, 48), (48, 96), (64, 64)])
@pytest.mark.parametrize("smallest", [0.1, 1e-3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str
)
def test_orthogonalise_is_the_plain_iteration(
    shape: tuple[int, int], smallest: float, dtype: torch.dtype, tolerance: float
) -> None:
    matrix = with_spectrum(*shape, smallest)
    found = orthogonalise(matrix.to(dtype)[None])[0]
    assert found.dtype == dtype
    expected = plain_newton_schulz(matrix)
    assert float((found.double() - expected).norm() / expected.norm()) < tolerance


def test_steps_in_bfloat16_point_where_those_of_float32_do() -> None:
    start, gradient = parameter(96, 48, seed=9).float(), parameter(96, 48).float()
    weights = [nn.Parameter(start.detach().clone()) for _ in range(2)]
    for weight, rounds in zip(weights, (False, True), strict=True):
        weight.grad = gradient.detach()
        Muon([weight], lr=1e-2, betas=(0.9, 0.999), rounds=rounds).step()
    exact, rounded = ((weight - start).detach() for weight in weights)
    assert 0 < float((rounded - exact).norm()) < 0.05 * float(exact.norm())


def test_a_zero_gradient_moves_nothing() -> None:
    assert float(orthogonalise(torch.zeros(1, 6, 4)).abs().max()) == 0


def test_the_first_step_is_the_polar_factor_in_units_of_the_rows() -> None:
    projection = parameter(12, 5, size=0.02)
    with torch.no_grad():
        projection[:6] *= 100
    before, sizes = projection.detach().clone(), projection.detach().square().mean(1, keepdim=True).sqrt()
    sizes = sizes.clamp_min(0.1 * float(sizes.mean()))
    projection.grad = parameter(12, 5, seed=3).detach()
    Muon([projection], lr=1e-3, betas=(0.9, 0.999)).step()
    wanted = 1e-3 * math.sqrt(12) * sizes * polar(projection.grad * sizes)
    moved = before - projection.detach()
    assert float((moved * wanted).sum() / (moved.norm() * wanted.norm())) > 0.98
    assert 0.6 < float(moved.norm() / wanted.norm()) < 1.3


def test_momentum_averages_the_gradients_of_earlier_steps() -> None:
    projection = parameter(6, 4)
    sizes = row_sizes(projection)
    muon = Muon([projection], lr=0.0, betas=(0.9, 0.999))
    average = torch.zeros(6, 4, dtype=torch.float64)
    for seed in range(3):
        projection.grad = parameter(6, 4, seed=seed + 10).detach()
        muon.step()
        average = 0.9 * average + 0.1 * projection.grad * sizes
    torch.testing.assert_close(muon.state[projection]["momentum"], average)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)], ids=["tall", "wide"])
def test_three_steps_are_the_docstring_s_formula(shape: tuple[int, int]) -> None:
    beta1, decay = 0.8, 0.5
    projection = parameter(*shape, size=0.02)
    with torch.no_grad():
        projection[:2] *= 100
    expected = projection.detach().clone()
    sizes = expected.square().mean(1, keepdim=True).sqrt()
    sizes = sizes.clamp_min(0.1 * float(sizes.mean()))  # those of the start, for all steps
    average = torch.zeros_like(expected)
    muon = Muon([projection], lr=1.0, betas=(beta1, 0.999), weight_decay=decay)
    for seed, rate in enumerate((1e-2, 3e-2, 2e-2), start=30):
        gradient = parameter(*shape, seed=seed).detach()
        projection.grad = gradient.clone()
        set_rate(muon, rate)
        muon.step()
        average = beta1 * average + (1 - beta1) * sizes * gradient
        ahead = beta1 * average + (1 - beta1) * sizes * gradient
        step = math.sqrt(max(shape)) * sizes * plain_newton_schulz(ahead)
        expected = (1 - rate * decay) * expected - rate * step
        torch.testing.assert_close(projection.detach(), expected, rtol=1e-8, atol=1e-10)


def test_gains_move_as_adam_moves_them() -> None:
    gain, twin = parameter(7), parameter(7)
    muon = Muon([gain], lr=1e-2, betas=(0.9, 0.99))
    adam = torch.optim.Adam([twin], lr=GAIN_SHARE * 1e-2, betas=(0.9, 0.99))
    for seed in range(4):
        gain.grad = twin.grad = parameter(7, seed=seed + 20).detach()
        muon.step()
        adam.step()
    torch.testing.assert_close(gain, twin, rtol=1e-9, atol=1e-12)


def test_stacking_matrices_changes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for stack_bytes in (1, 2**20):
        monkeypatch.setitem(module.STACK_BYTES, "cpu", stack_bytes)
        projections = [parameter(6, 4, seed=seed) for seed in range(3)]
        for seed, projection in enumerate(projections):
            projection.grad = parameter(6, 4, seed=seed + 5).detach()
        Muon(projections, lr=1e-2, betas=(0.9, 0.999)).step()
        results.append(torch.stack([projection.detach() for projection in projections]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)


RANKS = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.ranks import start_ranks, wait_for
from lrc.training import optimizer as module

folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
module.STACK_BYTES["cpu"], module.GATHERED_BYTES = int(sys.argv[3]), int(sys.argv[4])

def work(rank):
    dist.init_process_group("gloo", rank=rank, world_size=3)
    counts, plain = [], module.orthogonalise
    module.orthogonalise = lambda stack: (counts.append(len(stack)), plain(stack))[1]
    found = steps_of(rank, 3)
    torch.save((counts, found), folder / f"{rank}.pt")

def steps_of(rank, num_ranks):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(14)]
    projections = [nn.Parameter(value) for value in values[:7]]
    for projection, value in zip(projections, values[7:]):
        projection.grad = value
    muon = module.Muon(
        projections, lr=1e-2, betas=(0.9, 0.999), rounds=dtype == torch.bfloat16, rank=rank, num_ranks=num_ranks
    )
    muon.step()
    return torch.stack([projection.detach() for projection in projections])

torch.save(steps_of(0, 1), folder / "one.pt")
print(wait_for(start_ranks(work, 3, folder), seconds=60))
"""


@pytest.mark.parametrize(
    ("dtype", "stack_bytes", "gathered_bytes", "counts"),
    [
        ("float64", 1, 2**20, [[1, 1, 1], [1, 1], [1, 1]]),  # the last of three stacks has one matrix
        ("float64", 2 * 96, 2**20, [[2, 1], [2], [2]]),
        ("float64", 2 * 96, 2 * 96, [[1, 1, 1, 1], [1, 1, 1], []]),  # two at a time: the third rank has none
        ("bfloat16", 2**20, 2**20, [[3], [2], [2]]),
    ],
)
def test_ranks_share_the_matrices_and_take_the_steps_of_one(
    tmp_path: Path, dtype: str, stack_bytes: int, gathered_bytes: int, counts: list[list[int]]
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", RANKS, str(tmp_path), dtype, str(stack_bytes), str(gathered_bytes)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == "[0, 0, 0]\n", done.stderr[-3000:] + (tmp_path / "rank-0.txt").read_text()
    expected = torch.load(tmp_path / "one.pt")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert [shared for shared, _ in found] == counts
    for _, values in found:
        assert torch.equal(values, found[0][1])
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)


def test_rows_that_the_start_left_empty_count_as_a_tenth_of_the_mean() -> None:
    selection = torch.tensor([[2.0, 2.0], [0.0, 0.0]])
    assert row_sizes(selection).flatten().tolist() == pytest.approx([2.0, 0.1])
    assert float(row_sizes(torch.zeros(2, 2)).min()) > 0


def test_weight_decay_shrinks_by_rate_times_decay() -> None:
    projection = parameter(6, 4)
    before = projection.detach().clone()
    projection.grad = torch.zeros_like(projection)
    Muon([projection], lr=0.1, betas=(0.9, 0.999), weight_decay=0.5).step()
    torch.testing.assert_close(projection.detach(), before * 0.95)


def test_the_recipe_names_the_optimiser() -> None:
    trained = [parameter(6, 4)]
    assert isinstance(make_optimizer(trained, TrainConfig(max_steps=1, optimizer="muon")), Muon)
    assert isinstance(make_optimizer(trained, TrainConfig(max_steps=1, optimizer="adamw")), torch.optim.AdamW)


TABLE = "dense.embed.weight"


def free_tensors() -> dict[str, nn.Parameter]:
    shapes = {
        "projections.q": (6, 4),
        "gains.norm": (4,),
        "dense.up": (5, 4),
        "dense.experts": (3, 5, 4),
        TABLE: (9, 4),
    }
    return {name: parameter(*shape, seed=seed, size=0.02) for seed, (name, shape) in enumerate(shapes.items())}


def test_free_weights_have_a_rate_of_their_own_on_the_run_s_schedule() -> None:
    trained = free_tensors()
    groups = parameter_groups(trained, {TABLE}, 3.0)
    assert [len(group["params"]) for group in groups] == [2, 2, 1]
    optimizer = make_optimizer(groups, TrainConfig(max_steps=1))
    set_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.6, 0.6])
    assert len(parameter_groups({"gains.norm": trained["gains.norm"]}, {TABLE}, 3.0)) == 1


def test_shares_of_the_rate_go_by_parts_of_names_and_multiply() -> None:
    shares = {"gains": 0.5, "norm": 3.0, "up": 2.0, "no": 9.0}
    found = {name: rate_share(name, shares) for name in free_tensors()}
    assert found == {"projections.q": 1, "gains.norm": 1.5, "dense.up": 2, "dense.experts": 1, TABLE: 1}
    trained = free_tensors()
    groups = parameter_groups(trained, {TABLE}, 3.0, shares)
    rates = {id(value): group["rate_share"] for group in groups for value in group["params"]}
    assert [rates[id(value)] for value in trained.values()] == [1.0, 1.5, 6.0, 3.0, 3.0]
    assert [group["is_table"] for group in groups].count(True) == 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_is_as_long_as_its_share(optimizer: Any) -> None:
    moved = []
    for shares in ({}, {"q": 0.25}, {"q": 0.0}):
        trained = {"projections.q": parameter(6, 4), "projections.k": parameter(6, 4, seed=1)}
        before = {name: value.detach().clone() for name, value in trained.items()}
        settings = TrainConfig(max_steps=1, optimizer=optimizer)
        made = make_optimizer(parameter_groups(trained, (), 1.0, shares), settings)
        set_rate(made, 1e-3)
        for seed, value in enumerate(trained.values()):
            value.grad = parameter(*value.shape, seed=10 + seed).detach()
        made.step()
        moved.append({name: (value.detach() - before[name]) for name, value in trained.items()})
    plain, quarter, none = moved
    torch.testing.assert_close(quarter["projections.q"], plain["projections.q"] / 4, rtol=1e-3, atol=1e-7)
    assert not none["projections.q"].any()
    for other in (quarter, none):
        torch.testing.assert_close(other["projections.k"], plain["projections.k"])


def test_a_share_of_what_is_not_trained_is_refused_with_what_there_is() -> None:
    check_rate_shares({"q": 0.5, "gains": 2.0}, free_tensors())
    with pytest.raises(
        ConfigError, match=r"what no trained tensor is called: lm_head, q_proj\. Parts .* experts, gains,"
    ):
        check_rate_shares({"q_proj": 0.5, "q": 1.0, "lm_head": 0.1}, free_tensors())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_remembered_has_the_listed_names_and_shapes(optimizer: Any) -> None:
    trained, settings = free_tensors(), TrainConfig(max_steps=1, optimizer=optimizer)
    made = make_optimizer(parameter_groups(trained, {TABLE}, 1.0), settings)
    for value in trained.values():
        value.grad = torch.ones_like(value)
    made.step()
    found = {f"{key}/{name}": kept.shape for name, value in trained.items() for key, kept in made.state[value].items()}
    assert found == moment_shapes({name: value.shape for name, value in trained.items()}, optimizer, {TABLE})


def test_stacked_experts_move_as_so_many_matrices() -> None:
    stack = parameter(3, 5, 4, size=0.02)
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stack.grad = parameter(3, 5, 4, seed=1).detach()
    for matrix, gradient in zip(alone, stack.grad, strict=True):
        matrix.grad = gradient
    Muon([stack], lr=1e-2, betas=(0.9, 0.999)).step()
    muon = Muon(alone, lr=1e-2, betas=(0.9, 0.999))
    for matrix, sizes in zip(alone, row_sizes(parameter(3, 5, 4, size=0.02)), strict=True):
        muon.state[matrix]["row_size"] = sizes  # floored by the mean of the whole stack
    muon.step()
    torch.testing.assert_close(stack.detach(), torch.stack([matrix.detach() for matrix in alone]))


def test_a_table_moves_by_adam_in_units_of_its_rows_and_rests_where_no_token_is() -> None:
    table = parameter(4, 3)
    with torch.no_grad():
        table[0] *= 50
    before, sizes = table.detach().clone(), row_sizes(table)
    table.grad = torch.zeros_like(table)
    table.grad[:2] = parameter(2, 3, seed=7).detach()
    group = {"params": [table], "is_table": True}
    muon = Muon([group], lr=1e-2, betas=(0.9, 0.999))
    muon.step()
    moved = (before - table.detach()) / sizes
    torch.testing.assert_close(moved[:2], 1e-2 * table.grad[:2].sign(), rtol=1e-5, atol=0)
    assert not moved[2:].any()
    assert set(muon.state[table]) == {"row_size", "step", *MOMENTS}


def test_an_update_that_starts_at_zero_moves_in_the_units_that_it_is_given() -> None:
    update, merged = nn.Parameter(torch.zeros(6, 4, dtype=torch.float64)), parameter(6, 4, size=0.5)
    muon = Muon([update], lr=1e-2, betas=(0.9, 0.999))
    muon.state[update]["row_size"] = row_sizes(merged)
    update.grad = parameter(6, 4, seed=9).detach()
    muon.step()
    assert float(update.detach().square().mean().sqrt()) == pytest.approx(1e-2 * 0.5, rel=0.4)
