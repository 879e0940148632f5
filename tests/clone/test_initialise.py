"""The linear algebra of the starts against explicit rows: least squares, hold-out choice, bases, ranks."""

import math

import pytest
import torch
from torch import Tensor

from lrc.clone import initialise
from lrc.clone.initialise import (
    RANDOM_STD,
    RIDGE,
    Moments,
    ProductSum,
    centred_basis,
    channel_selection,
    effective_rank,
    principal_basis,
    random_projection,
    ridge_regression,
    tied_head_gain,
)

CPU = torch.device("cpu")
D_INPUT, D_TARGET = 6, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_of(inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Moments:
    moments = Moments(inputs.shape[1], targets.shape[1], CPU)
    moments.add(inputs, targets, torch.ones(len(inputs)) if weights is None else weights)
    return moments


def ridge_on_rows(inputs: Tensor, targets: Tensor, weights: Tensor, ridge: float, prior: Tensor) -> Tensor:
    """The same fit as plain least squares: the penalty is further rows, one an input, that ask for the prior."""
    root = weights.sqrt()[:, None]
    penalty = torch.diag((ridge * (root * inputs).square().sum(0)).sqrt())
    rows = torch.cat([root * inputs, penalty])
    answers = torch.cat([root * targets, penalty @ prior])
    solution: Tensor = torch.linalg.lstsq(rows, answers).solution
    return solution


def test_a_random_projection_has_the_published_spread_and_follows_its_generator() -> None:
    drawn = random_projection(100, 80, torch.Generator().manual_seed(3))
    assert drawn.shape == (100, 80)
    assert drawn.dtype == torch.float32
    assert float(drawn.std()) == pytest.approx(RANDOM_STD, rel=0.03)
    assert abs(float(drawn.mean())) < RANDOM_STD / 20
    assert torch.equal(drawn, random_projection(100, 80, torch.Generator().manual_seed(3)))
    assert not torch.equal(drawn, random_projection(100, 80, torch.Generator().manual_seed(4)))


def test_moments_are_the_sums_over_rows_however_they_arrive() -> None:
    inputs, targets, weights = random(20, D_INPUT), random(20, D_TARGET, seed=1), random(20, seed=2).square()
    streamed = moments_of(inputs[:7], targets[:7], weights[:7])
    streamed.add(inputs[7:12], targets[7:12], weights[7:12])
    shape = (2, 4)  # the same rows as a batch of sequences
    streamed.add(inputs[12:].unflatten(0, shape), targets[12:].unflatten(0, shape), weights[12:].unflatten(0, shape))
    diagonal = torch.diag(weights)
    torch.testing.assert_close(streamed.input_input, inputs.T @ diagonal @ inputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(streamed.input_target, inputs.T @ diagonal @ targets, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_moments_of_narrow_rows_are_accumulated_in_float64(dtype: torch.dtype) -> None:
    inputs, targets = random(200, D_INPUT).to(dtype), random(200, D_TARGET, seed=1).to(dtype)
    moments = Moments(D_INPUT, D_TARGET, CPU)
    for row in range(0, 200, 10):
        moments.add(inputs[row : row + 10], targets[row : row + 10], torch.ones(10))
    assert moments.input_input.dtype == moments.input_target.dtype == torch.float64
    torch.testing.assert_close(moments.input_input, inputs.double().T @ inputs.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.input_target, inputs.double().T @ targets.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ridge", [1e-5, RIDGE, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_ridge_regression_is_least_squares_on_the_stacked_rows(ridge: float, weighted: bool) -> None:
    inputs, targets, prior = random(30, D_INPUT), random(30, D_TARGET, seed=1), random(D_INPUT, D_TARGET, seed=2)
    weights = random(30, seed=3).square() if weighted else torch.ones(30, dtype=torch.float64)
    solution = ridge_regression(moments_of(inputs, targets, weights), prior, ridge)
    assert solution.dtype == torch.float64
    torch.testing.assert_close(solution, ridge_on_rows(inputs, targets, weights, ridge, prior), rtol=0, atol=1e-9)


def test_a_small_ridge_recovers_an_exact_relation_and_a_large_one_the_prior() -> None:
    inputs, truth, prior = random(30, D_INPUT), random(D_INPUT, D_TARGET, seed=1), random(D_INPUT, D_TARGET, seed=2)
    moments = moments_of(inputs, inputs @ truth)
    torch.testing.assert_close(ridge_regression(moments, prior, 1e-9), truth, rtol=0, atol=1e-7)
    torch.testing.assert_close(ridge_regression(moments, prior, 1e9), prior, rtol=0, atol=1e-7)


def test_a_ridge_is_relative_to_each_input_so_that_their_scales_change_no_prediction() -> None:
    inputs, targets = random(30, D_INPUT), random(30, D_TARGET, seed=1)
    zero, scales = torch.zeros(D_INPUT, D_TARGET), torch.logspace(-1, 1, D_INPUT, dtype=torch.float64)
    solution = ridge_regression(moments_of(inputs, targets), zero)
    scaled = ridge_regression(moments_of(scales * inputs, targets), zero)
    torch.testing.assert_close(scales[:, None] * scaled, solution, rtol=0, atol=1e-10)


def test_inputs_that_no_row_has_keep_the_prior() -> None:
    inputs, targets, prior = random(30, D_INPUT), random(30, D_TARGET, seed=1), random(D_INPUT, D_TARGET, seed=2)
    inputs[:, 2] = 0
    solution = ridge_regression(moments_of(inputs, targets), prior)
    torch.testing.assert_close(solution[2], prior[2], rtol=0, atol=1e-12)
    assert not torch.allclose(solution[1], prior[1])


def test_inputs_that_are_all_zero_leave_the_prior() -> None:
    prior = random(D_INPUT, D_TARGET)
    solution = ridge_regression(moments_of(torch.zeros(5, D_INPUT), random(5, D_TARGET)), prior)
    assert torch.equal(solution, prior)


def second_moment(width: int) -> Tensor:
    """A full-rank moment with distinct eigenvalues and a few channels that stand out."""
    rows = random(200, width) @ (random(width, width, seed=1) * torch.linspace(0.2, 2, width, dtype=torch.float64))
    rows[:, [2, 7]] *= 8
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize(
    ("size", "outliers"), [(1, 0), (1, 1), (4, 0), (4, 1), (4, 3), (4, 4), (10, 0), (10, 2), (10, 10)]
)
def test_the_basis_is_orthonormal(size: int, outliers: int) -> None:
    basis = principal_basis(second_moment(10), size, outliers)
    assert basis.shape == (10, size)
    assert basis.dtype == torch.float64
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_basis_spans_the_top_eigenspace(size: int) -> None:
    moment = second_moment(10)
    basis = principal_basis(moment, size)
    values, vectors = torch.linalg.eigh(moment)
    top = vectors[:, -size:]
    torch.testing.assert_close(basis @ basis.T, top @ top.T, rtol=0, atol=1e-10)
    assert float((basis.T @ moment @ basis).trace()) == pytest.approx(float(values[-size:].sum()), rel=1e-12)


def test_outlier_channels_are_kept_whole_and_the_rest_spans_the_others_eigenspace() -> None:
    moment = second_moment(10)
    loudest = moment.diagonal().argsort(descending=True)[:2]
    assert sorted(loudest.tolist()) == [2, 7]
    basis = principal_basis(moment, 5, outlier_channels=2)
    torch.testing.assert_close(basis[:, :2], torch.eye(10, dtype=torch.float64)[:, loudest], rtol=0, atol=0)
    assert not basis[loudest, 2:].any()
    others = [channel for channel in range(10) if channel not in (2, 7)]
    top = torch.linalg.eigh(moment[others][:, others]).eigenvectors[:, -3:]
    torch.testing.assert_close(basis[others, 2:] @ basis[others, 2:].T, top @ top.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_centred_basis_maps_mean_to_mean_and_keeps_the_leading_directions(size: int) -> None:
    rows = torch.randn(200, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * torch.arange(1, 13)
    rows = rows + 7  # a mean that no norm would hand on
    centred = rows - rows.mean(1, keepdim=True)
    moment = centred.T @ centred / 200
    basis = centred_basis(moment, size)
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=torch.float64))
    projected = rows @ basis
    torch.testing.assert_close(projected - projected.mean(1, keepdim=True), centred @ basis)
    kept = torch.linalg.eigvalsh(moment).flip(0)[: size - 1].sum()
    assert float((basis.T @ moment @ basis).trace()) == pytest.approx(float(kept), rel=1e-9, abs=1e-9)


def unrecovered(rows: Tensor, answers: Tensor, basis: Tensor) -> float:
    """Mean of `(g . e)^2` over all rows and gradients, `e` what least squares on `Q.T x` leaves of `x`."""
    seen = rows @ basis
    left = rows - seen @ (torch.linalg.pinv(seen, rtol=1e-9) @ rows)
    return float((left @ answers.T).square().mean())


@pytest.mark.parametrize("size", [1, 4, 9])
def test_a_sensitive_basis_costs_least(size: int) -> None:
    rows = random(200, 10) @ random(10, 10, seed=1)
    answers = random(150, 10, seed=2) @ (random(10, 10, seed=3) * torch.linspace(0.1, 3, 10, dtype=torch.float64))
    moment, metric = rows.T @ rows / 200, answers.T @ answers / 150
    basis = principal_basis(moment, size, sensitivity=metric)
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    values = torch.linalg.eigvals(metric @ moment).real.sort().values  # of C^1/2 G C^1/2 too
    cost = unrecovered(rows, answers, basis)
    assert cost == pytest.approx(float(values[: 10 - size].sum()), rel=1e-4)  # a floor under the sensitivity
    assert cost < 0.95 * unrecovered(rows, answers, principal_basis(moment, size))
    seen = basis.T @ moment @ basis
    torch.testing.assert_close(seen, torch.diag(seen.diagonal()), rtol=0, atol=1e-9 * float(seen.max()))
    for seed in range(5):
        other = torch.linalg.qr(basis + 0.01 * random(10, size, seed=10 + seed)).Q
        assert unrecovered(rows, answers, other) > cost


def test_a_sensitivity_to_all_alike_changes_nothing() -> None:
    moment = second_moment(10)
    plain = principal_basis(moment, 4, 1)
    alike = principal_basis(moment, 4, 1, sensitivity=3 * torch.eye(10))
    torch.testing.assert_close(alike @ alike.T, plain @ plain.T, rtol=0, atol=1e-9)


def test_directions_that_no_gradient_asks_for_are_filled_by_their_energy() -> None:
    """Few gradients span few directions; beyond these the basis is the principal one of what they leave."""
    moment = torch.diag(torch.arange(10, 0, -1, dtype=torch.float64))
    asked = torch.zeros(10, 10, dtype=torch.float64)
    asked[7, 7] = 1.0
    basis = principal_basis(moment, 3, sensitivity=asked)
    torch.testing.assert_close((basis @ basis.T).diagonal()[[0, 1, 7]], torch.ones(3, dtype=torch.float64))
    unasked, plain = principal_basis(moment, 3, sensitivity=torch.zeros(10, 10)), principal_basis(moment, 3)
    torch.testing.assert_close(unasked @ unasked.T, plain @ plain.T)


def test_a_centred_basis_of_few_states_is_orthonormal() -> None:
    """Directions without energy are as many as the channels that are left, and the mean over the channels is one."""
    rows = random(3, 12) - random(3, 12).mean(1, keepdim=True)
    moment = rows.T @ rows
    for sensitivity in (None, moment):
        basis = centred_basis(moment, 9, sensitivity=sensitivity)
        torch.testing.assert_close(basis.T @ basis, torch.eye(9, dtype=torch.float64))


@pytest.mark.parametrize("size", [2, 5, 12])
def test_a_centred_and_sensitive_basis_maps_mean_to_mean(size: int) -> None:
    rows = random(200, 12) * torch.arange(1, 13)
    centred = rows - rows.mean(1, keepdim=True)
    answers = random(150, 12, seed=2) * torch.arange(12, 0, -1)
    answers = answers - answers.mean(1, keepdim=True)  # as behind a norm that subtracts the mean
    moment, metric = centred.T @ centred / 200, answers.T @ answers / 150
    basis = centred_basis(moment, size, sensitivity=metric)
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=torch.float64))
    projected = rows @ basis
    torch.testing.assert_close(projected - projected.mean(1, keepdim=True), centred @ basis)
    values = torch.linalg.eigvals(metric @ moment).real.sort().values
    assert unrecovered(centred, answers, basis) == pytest.approx(float(values[: 13 - size].sum()), rel=1e-6, abs=1e-9)


def test_channel_selection_keeps_the_loudest_channels_in_their_order() -> None:
    selection = channel_selection(torch.tensor([0.1, 5.0, 0.3, 2.0, 9.0]), 3)
    stream = random(7, 5)
    assert selection.dtype == torch.float64
    assert torch.equal(stream @ selection, stream[:, [1, 3, 4]])


@pytest.mark.parametrize(
    ("singular_values", "rank"),
    [
        ([1.0] * 6, 6.0),
        ([3.0, 3.0, 0.0, 0.0], 2.0),
        ([5.0, 0.0, 0.0], 1.0),
        ([0.5, 0.25, 0.25], 2**1.5),
        ([8.0, 4.0, 2.0, 2.0], 2**1.75),
    ],
)
def test_the_effective_rank_of_known_spectra(singular_values: list[float], rank: float) -> None:
    size = len(singular_values)
    left, right = torch.linalg.qr(random(20, size)).Q, torch.linalg.qr(random(size, size, seed=1)).Q
    states = left @ torch.diag(torch.tensor(singular_values, dtype=torch.float64)) @ right
    # roots of eigenvalues that are 0 up to rounding are near 1e-8
    assert float(effective_rank(states.T @ states)) == pytest.approx(rank, rel=1e-6)
    assert float(effective_rank(1e3 * states.T @ states)) == pytest.approx(rank, rel=1e-6)


def test_the_effective_rank_of_a_silent_stream_is_finite() -> None:
    assert math.isfinite(float(effective_rank(torch.zeros(4, 4))))


def test_the_tied_head_s_gain_is_least_squares_on_explicit_rows() -> None:
    d_teacher, d_student, vocabulary, rows = 6, 3, 9, 12
    basis = torch.linalg.qr(random(d_teacher, d_student)).Q
    head = torch.randint(-4, 5, (vocabulary, d_teacher), generator=torch.Generator().manual_seed(1)).double()
    student, teacher = random(rows, d_student, seed=2), random(rows, d_teacher, seed=3)
    weights = random(rows, seed=4).square() + 0.1
    root = weights.sqrt()[:, None, None]
    # one least-squares row for each (position, vocabulary entry): E Q diag(n_S) g against E n_T
    design = (root * (head @ basis)[None] * student[:, None, :]).flatten(0, 1)
    answer = (root * (teacher @ head.T)[:, :, None]).flatten()
    expected = torch.linalg.lstsq(design, answer[:, None]).solution[:, 0]
    gain = tied_head_gain(basis, head, moments_of(student, teacher, weights))
    assert gain.dtype == torch.float64
    torch.testing.assert_close(gain, expected, rtol=1e-4, atol=1e-5)


def test_the_tied_head_s_gain_is_found_where_one_is_exact() -> None:
    basis, true_gain = torch.linalg.qr(random(8, 4)).Q, torch.tensor([0.5, -1.0, 2.0, 3.0], dtype=torch.float64)
    student = random(50, 4, seed=1)
    teacher = (student * true_gain) @ basis.T
    gain = tied_head_gain(basis, random(20, 8, seed=2), moments_of(student, teacher))
    torch.testing.assert_close(gain, true_gain, rtol=1e-4, atol=1e-5)


def test_the_tied_head_is_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    basis = torch.linalg.qr(random(8, 4)).Q
    moments, head = moments_of(random(50, 4, seed=1), random(50, 8, seed=3)), random(20, 8, seed=2)
    expected = tied_head_gain(basis, head, moments)
    add = ProductSum.add
    seen: list[int] = []

    def watch(self: ProductSum, a: Tensor, b: Tensor) -> None:
        seen.append(len(a))
        add(self, a, b)

    monkeypatch.setattr(ProductSum, "add", watch)
    monkeypatch.setattr(initialise, "FLOAT32_ROWS", 6)
    torch.testing.assert_close(tied_head_gain(basis, head.float(), moments), expected, rtol=1e-4, atol=1e-5)
    assert seen == [6, 6, 6, 2]
