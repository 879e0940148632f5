"""The linear algebra of the starts against explicit rows: least squares, hold-out choice, bases, ranks."""

import math

import pytest
import torch
from torch import Tensor

from lrc.clone.initialise import (
    RANDOM_STD,
    RIDGES,
    UNCHECKED_RIDGE,
    Moments,
    channel_selection,
    effective_rank,
    principal_basis,
    random_projection,
    ridge_regression,
    tied_head_gain,
    validated_ridge_regression,
)

CPU = torch.device("cpu")
D_INPUT, D_TARGET = 6, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_of(inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Moments:
    moments = Moments(inputs.shape[1], targets.shape[1], CPU)
    moments.add(inputs, targets, weights)
    return moments


def ridge_on_rows(inputs: Tensor, targets: Tensor, weights: Tensor, ridge: float, prior: Tensor) -> Tensor:
    """The same fit as plain least squares: the penalty is further rows, `sqrt(lambda) I` that ask for the prior."""
    penalty = ridge * (weights[:, None] * inputs.square()).sum(0).mean()
    root = weights.sqrt()[:, None]
    rows = torch.cat([root * inputs, penalty.sqrt() * torch.eye(inputs.shape[1], dtype=torch.float64)])
    answers = torch.cat([root * targets, penalty.sqrt() * prior])
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
    pooled = streamed + moments_of(inputs[12:], targets[12:], weights[12:])
    diagonal = torch.diag(weights)
    torch.testing.assert_close(pooled.input_input, inputs.T @ diagonal @ inputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(pooled.input_target, inputs.T @ diagonal @ targets, rtol=0, atol=1e-12)
    torch.testing.assert_close(pooled.total, weights.sum(), rtol=0, atol=1e-12)


def test_pooling_leaves_both_parts_as_they_were() -> None:
    first, second = moments_of(random(5, 3), random(5, 2)), moments_of(random(4, 3, seed=1), random(4, 2, seed=1))
    before = first.input_input.clone(), second.input_target.clone()
    pooled = first + second
    pooled.add(random(2, 3), random(2, 2))
    assert torch.equal(first.input_input, before[0])
    assert torch.equal(second.input_target, before[1])
    assert (first.total.item(), second.total.item(), pooled.total.item()) == (5, 4, 11)


def test_rows_without_weights_count_one_each() -> None:
    inputs, targets = random(9, D_INPUT), random(9, D_TARGET, seed=1)
    plain, weighted = moments_of(inputs, targets), moments_of(inputs, targets, torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(plain.input_input, weighted.input_input, rtol=0, atol=1e-12)
    torch.testing.assert_close(plain.input_target, weighted.input_target, rtol=0, atol=1e-12)
    assert plain.total == weighted.total == 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_moments_of_narrow_rows_are_accumulated_in_float64(dtype: torch.dtype) -> None:
    inputs, targets = random(200, D_INPUT).to(dtype), random(200, D_TARGET, seed=1).to(dtype)
    moments = Moments(D_INPUT, D_TARGET, CPU)
    for row in range(0, 200, 10):
        moments.add(inputs[row : row + 10], targets[row : row + 10])
    assert moments.input_input.dtype == moments.input_target.dtype == torch.float64
    torch.testing.assert_close(moments.input_input, inputs.double().T @ inputs.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.input_target, inputs.double().T @ targets.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_ridge_regression_is_least_squares_on_the_stacked_rows(ridge: float, weighted: bool) -> None:
    inputs, targets, prior = random(30, D_INPUT), random(30, D_TARGET, seed=1), random(D_INPUT, D_TARGET, seed=2)
    weights = random(30, seed=3).square() if weighted else torch.ones(30, dtype=torch.float64)
    solution = ridge_regression(moments_of(inputs, targets, weights if weighted else None), ridge, prior)
    assert solution.dtype == torch.float64
    torch.testing.assert_close(solution, ridge_on_rows(inputs, targets, weights, ridge, prior), rtol=0, atol=1e-9)


def test_a_small_ridge_recovers_an_exact_relation_and_a_large_one_the_prior() -> None:
    inputs, truth, prior = random(30, D_INPUT), random(D_INPUT, D_TARGET, seed=1), random(D_INPUT, D_TARGET, seed=2)
    moments = moments_of(inputs, inputs @ truth)
    torch.testing.assert_close(ridge_regression(moments, 1e-9, prior), truth, rtol=0, atol=1e-7)
    torch.testing.assert_close(ridge_regression(moments, 1e9, prior), prior, rtol=0, atol=1e-7)


def test_a_ridge_is_relative_to_the_inputs_so_that_their_scale_changes_no_prediction() -> None:
    inputs, targets = random(30, D_INPUT), random(30, D_TARGET, seed=1)
    zero = torch.zeros(D_INPUT, D_TARGET)
    solution = ridge_regression(moments_of(inputs, targets), 0.1, zero)
    scaled = ridge_regression(moments_of(1000 * inputs, targets), 0.1, zero)
    torch.testing.assert_close(1000 * scaled, solution, rtol=0, atol=1e-10)


def test_directions_that_no_row_has_keep_the_prior() -> None:
    inputs, targets, prior = random(3, D_INPUT), random(3, D_TARGET, seed=1), random(D_INPUT, D_TARGET, seed=2)
    solution = ridge_regression(moments_of(inputs, targets), 1e-6, prior)
    unseen = torch.linalg.svd(inputs).Vh[3:]
    torch.testing.assert_close(unseen @ solution, unseen @ prior, rtol=0, atol=1e-6)
    torch.testing.assert_close(inputs @ solution, targets, rtol=0, atol=1e-3)


def test_inputs_that_are_all_zero_leave_the_prior() -> None:
    prior = random(D_INPUT, D_TARGET)
    solution = ridge_regression(moments_of(torch.zeros(5, D_INPUT), random(5, D_TARGET)), 1e-2, prior)
    assert torch.equal(solution, prior)


@pytest.mark.parametrize(
    ("rows", "noise", "prior_error", "best"),
    [(40, 0.0, 1.0, RIDGES[0]), (12, 2.0, 0.3, None), (24, 1.0, 0.5, None), (10, 20.0, 0.0, RIDGES[-1])],
    ids=["clean rows", "some noise", "more rows", "noise and a perfect prior"],
)
def test_the_ridge_is_the_one_that_an_explicit_hold_out_picks(
    rows: int, noise: float, prior_error: float, best: float | None
) -> None:
    truth = random(D_INPUT, D_TARGET, seed=1)
    inputs, prior = random(rows + 20, D_INPUT), truth + prior_error * random(D_INPUT, D_TARGET, seed=2)
    targets = inputs @ truth + noise * random(rows + 20, D_TARGET, seed=3)
    weights = random(rows + 20, seed=4).square() + 0.1
    fitted, held_out = slice(0, rows), slice(rows, None)

    def hold_out_error(ridge: float) -> float:
        solution = ridge_on_rows(inputs[fitted], targets[fitted], weights[fitted], ridge, prior)
        error = (targets[held_out] - inputs[held_out] @ solution).square().sum(1)
        return float((weights[held_out] * error).sum())

    expected = min(RIDGES, key=hold_out_error)
    solution, ridge = validated_ridge_regression(
        moments_of(inputs[fitted], targets[fitted], weights[fitted]),
        moments_of(inputs[held_out], targets[held_out], weights[held_out]),
        prior,
    )
    assert ridge == expected
    assert best is None or ridge == best
    torch.testing.assert_close(solution, ridge_on_rows(inputs, targets, weights, ridge, prior), rtol=0, atol=1e-8)


def test_without_rows_to_check_on_the_ridge_is_the_stated_one() -> None:
    inputs, targets, prior = random(9, D_INPUT), random(9, D_TARGET, seed=1), random(D_INPUT, D_TARGET, seed=2)
    fit = moments_of(inputs, targets)
    solution, ridge = validated_ridge_regression(fit, Moments(D_INPUT, D_TARGET, CPU), prior)
    assert ridge == UNCHECKED_RIDGE
    assert torch.equal(solution, ridge_regression(fit, UNCHECKED_RIDGE, prior))


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
