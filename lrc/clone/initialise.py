"""Start values: the small linear algebra behind `random`, `channel`, `pca` and `calibrated`.

`models/calibrate.py` walks the layers and gathers the moments; the formulas are here. All sums and solves are in
float64; the tensors that enter a sum may be of any float dtype and are multiplied in float32 or better.
"""

import torch
from torch import Tensor

RANDOM_STD = 0.02


def random_projection(d_teacher: int, d_student: int, generator: torch.Generator) -> Tensor:
    """Draw a published start, N(0, 0.02), `[d_T, d_S]` float32."""
    return torch.randn(d_teacher, d_student, generator=generator) * RANDOM_STD


FLOAT32_ROWS = 4096
"""Rows that are added up in float32 before they join a float64 sum: few enough to lose nothing that counts."""


class ProductSum:
    """A streaming sum of `A.T B` over rows, `[d_a, d_b]` float64."""

    def __init__(self, d_a: int, d_b: int, device: torch.device) -> None:
        self._total = torch.zeros(d_a, d_b, dtype=torch.float64, device=device)
        self._recent = torch.zeros(0)
        self._rows = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add rows `a [rows, d_a]`, `b [rows, d_b]`, both float32 or both float64."""
        if self._rows == 0:
            self._recent = torch.zeros(self._total.shape, dtype=a.dtype, device=a.device)
        self._recent.addmm_(a.T, b)
        self._rows += a.shape[0]
        if self._rows >= FLOAT32_ROWS:
            self._flush()

    def total(self) -> Tensor:
        """Return the sum so far."""
        self._flush()
        return self._total

    def _flush(self) -> None:
        if self._rows:
            self._total += self._recent
            self._recent, self._rows = torch.zeros(0), 0


class Moments:
    """Streaming sums for one least-squares fit of targets from inputs: `X.T w X` and `X.T w Y`, float64."""

    def __init__(self, d_input: int, d_target: int, device: torch.device) -> None:
        self._input_input = ProductSum(d_input, d_input, device)
        self._input_target = ProductSum(d_input, d_target, device)

    @property
    def input_input(self) -> Tensor:
        """`X.T w X`, `[d_input, d_input]`."""
        return self._input_input.total()

    @property
    def input_target(self) -> Tensor:
        """`X.T w Y`, `[d_input, d_target]`."""
        return self._input_target.total()

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add rows: `inputs [..., d_input]`, `targets [..., d_target]`, `weights [...]`."""
        exact = torch.promote_types(inputs.dtype, torch.float32)
        rows, answers = inputs.flatten(0, -2).to(exact), targets.flatten(0, -2).to(exact)
        weighted = rows * weights.flatten().to(exact)[:, None]
        self._input_input.add(weighted, rows)
        self._input_target.add(weighted, answers)


RIDGE = 0.1
"""Share of an input's own energy that pulls to the prior; docs/log.md has what other strengths and ways gave."""


def ridge_regression(moments: Moments, prior: Tensor | None, ridge: float = RIDGE) -> Tensor:
    """Solve `argmin_B E|Y - X B|^2 + ridge * sum_i E[X_i^2] |B_i - B_0,i|^2` over the rows `B_i`, one an input.

    Inputs of little energy count as much to the readers behind a gain as those of much, so each is damped by its own.

    Args:
        moments: Sums of the fit.
        prior: `B_0`, `[d_input, d_target]`, where the penalty pulls to; None: to zero.
        ridge: Penalty as a share of each input's mean square.

    Returns:
        `B = B_0 + (X.T X + ridge diag(X.T X))^-1 (X.T Y - X.T X B_0)`, `[d_input, d_target]`, float64. An input with
        less than a millionth of the mean energy is damped as if it had that, so that one without any keeps the prior.
    """
    gram = moments.input_input
    damped, energy = gram.clone(), gram.diagonal()
    floor = (1e-6 * energy.mean()).clamp_min(torch.finfo(torch.float64).tiny)
    damped.diagonal().add_(energy.clamp_min(floor), alpha=max(ridge, 1e-10))
    if prior is None:
        return torch.cholesky_solve(moments.input_target, torch.linalg.cholesky(damped))
    start = prior.double()
    return start + torch.cholesky_solve(moments.input_target - gram @ start, torch.linalg.cholesky(damped))


SENSITIVITY_FLOOR = 1e-6
"""Of every direction, as a share of the mean: where no gradient was seen, energy decides."""


def principal_basis(
    second_moment: Tensor, size: int, outlier_channels: int = 0, *, sensitivity: Tensor | None = None
) -> Tensor:
    """Choose the orthonormal basis `Q` whose coordinates `Q.T x` say most of the stream `x`.

    What a linear reader of them can't recover costs `tr G (C - C Q (Q.T C Q)^-1 Q.T C)`, with the second moment `C` and
    the sensitivity `G`. The cost is least where `C^1/2 Q` spans the leading eigenvectors `U` of `C^1/2 G C^1/2`, so
    where `Q` spans `G C^1/2 U`. Without a sensitivity, `G = I`, that is the span of the leading eigenvectors of `C`.
    Within its span the columns are turned so that the coordinates are uncorrelated.

    Args:
        second_moment: `C = E[x x.T]` of the (RMS-normalised) residual stream, `[d_T, d_T]`.
        size: `d_S`, columns of `Q`.
        outlier_channels: Channels with the largest mean square that get an identity column each.
        sensitivity: `G = E[g g.T]` of a loss's gradients with respect to `x`, `[d_T, d_T]`; None: all alike.

    Returns:
        `[d_T, size]` float64 with orthonormal columns.
    """
    moment = second_moment.double()
    width = moment.shape[0]
    kept = moment.diagonal().argsort(descending=True)[:outlier_channels]
    identity = torch.eye(width, dtype=torch.float64, device=moment.device)
    rest = torch.ones(width, dtype=torch.bool, device=moment.device)
    rest[kept] = False
    others = moment[rest][:, rest]
    if sensitivity is None:
        vectors = _leading(others, size - outlier_channels)
    else:
        vectors = _sensitive(others, sensitivity.double()[rest][:, rest], size - outlier_channels)
    basis = torch.zeros(width, size, dtype=torch.float64, device=moment.device)
    basis[:, :outlier_channels] = identity[:, kept]
    basis[rest, outlier_channels:] = vectors
    return basis


def _sensitive(moment: Tensor, sensitivity: Tensor, count: int) -> Tensor:
    """Return `count` orthonormal columns that span `G C^1/2 U`, `[d, count]`; see `principal_basis`."""
    mean = sensitivity.diagonal().mean()
    floor = SENSITIVITY_FLOOR * mean if mean > 0 else torch.ones_like(mean)
    metric = sensitivity + floor * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    values, vectors = torch.linalg.eigh(moment)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    span = metric @ root @ _leading(root @ metric @ root, count)
    basis: Tensor = torch.linalg.qr(span / span.norm(dim=0).clamp_min(torch.finfo(span.dtype).tiny)).Q
    return basis @ _leading(basis.T @ moment @ basis, count)


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of a symmetric matrix's `count` largest eigenvalues, `[d, count]`."""
    vectors: Tensor = torch.linalg.eigh(matrix).eigenvectors
    return vectors.flip(-1)[:, :count]


def centred_basis(second_moment: Tensor, size: int, *, sensitivity: Tensor | None = None) -> Tensor:
    """Choose the basis `Q` for norms that subtract the mean over the channels: `Q 1_S / sqrt(d_S) = 1_T / sqrt(d_T)`.

    With it the student's norm takes the mean of `Q.T x` out exactly where the teacher's takes out that of `x`. The
    other `size - 1` directions are those of `principal_basis` for the centred stream; all are turned so that the
    equation holds.

    Args:
        second_moment: `E[x x.T]` of the centred and normalised stream, `[d_T, d_T]`.
        size: `d_S`, columns of `Q`.
        sensitivity: As in `principal_basis`; the mean over the channels is taken out of it.

    Returns:
        `[d_T, size]` float64 with orthonormal columns.
    """
    width = second_moment.shape[0]
    ones = torch.ones(width, 1, dtype=torch.float64, device=second_moment.device)
    centred = torch.linalg.qr(ones, mode="complete").Q[:, 1:]
    moment, metric = (
        None if matrix is None else centred.T @ matrix.double() @ centred for matrix in (second_moment, sensitivity)
    )
    assert moment is not None
    basis = torch.cat([ones * width**-0.5, centred @ principal_basis(moment, size - 1, sensitivity=metric)], 1)
    # a reflection of the columns that sends the student's mean to the first of them, which is the teacher's
    mirror = torch.full((size,), size**-0.5, dtype=torch.float64, device=basis.device)
    mirror[0] -= 1
    length = mirror.square().sum()
    return basis if length == 0 else basis - 2 * torch.outer(basis @ mirror, mirror) / length


def channel_selection(scores: Tensor, size: int) -> Tensor:
    """Select the `size` channels with the largest scores, in channel order.

    Args:
        scores: A number a channel, `[d_T]`; the mean |activation| in RED (arXiv 2605.29327).
        size: Channels to keep.

    Returns:
        `[d_T, size]` float64 with one 1 in each column.
    """
    chosen = scores.argsort(descending=True)[:size].sort().values
    return torch.eye(scores.shape[0], dtype=torch.float64, device=chosen.device)[:, chosen]


def effective_rank(second_moment: Tensor, *, largest: int | None = None) -> Tensor:
    """Effective rank (Roy and Vetterli 2007): exp of the entropy of the states' normalised singular values.

    Args:
        second_moment: `X.T X` of the states, `[d, d]`; the singular values are the roots of its eigenvalues.
        largest: Singular values that count, from the largest on: the rank of the states' best projection to so many
            dimensions; None: all.

    Returns:
        Scalar float64 from 1 to d.
    """
    values = torch.linalg.eigvalsh(second_moment.double()).clamp_min(0).sqrt()
    if largest is not None:
        values = values[-largest:]  # eigvalsh sorts upwards
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def tied_head_gain(basis: Tensor, head: Tensor, normed: Moments) -> Tensor:
    """Fit the last norm's gain where embedding and head share the projection `Q`, so that nothing else is free.

    `argmin_g E|E Q (g * n_S) - E n_T|^2` with the head `E`, the student's normed state `n_S` and the teacher's
    `n_T`: `(Q.T C Q * S) g = diag(Q.T C X)`, `C = E.T E`, `S = E[n_S n_S.T]`, `X = E[n_T n_S.T]`.

    Args:
        basis: `Q`, `[d_T, d_S]`.
        head: `[vocabulary, d_T]`.
        normed: Moments with inputs `n_S` and targets `n_T`.

    Returns:
        `[d_S]` float64.
    """
    exact = torch.promote_types(head.dtype, torch.float32)
    products = ProductSum(head.shape[1], head.shape[1], head.device)
    for some in head.split(FLOAT32_ROWS):
        rows = some.to(exact)
        products.add(rows, rows)
    gram = products.total()
    metric = basis.T @ gram @ basis * normed.input_input
    answer = (basis.T @ gram @ normed.input_target.T).diagonal()
    ridge = 1e-6 * metric.diagonal().mean() * torch.eye(metric.shape[0], dtype=metric.dtype, device=metric.device)
    gain: Tensor = torch.linalg.solve(metric + ridge, answer)
    return gain
