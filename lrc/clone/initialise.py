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


class Moments:
    """Streaming sums for one least-squares fit of targets from inputs: `X.T w X`, `X.T w Y` and the weight total."""

    def __init__(self, d_input: int, d_target: int, device: torch.device) -> None:
        self.input_input = torch.zeros(d_input, d_input, dtype=torch.float64, device=device)
        self.input_target = torch.zeros(d_input, d_target, dtype=torch.float64, device=device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add rows: `inputs [n, d_input]`, `targets [n, d_target]`, `weights [n]` (1 if None)."""
        exact = torch.promote_types(inputs.dtype, torch.float32)
        rows, answers = inputs.to(exact), targets.to(exact)
        weighted = rows if weights is None else rows * weights.to(exact)[:, None]
        self.input_input += weighted.T @ rows
        self.input_target += weighted.T @ answers
        self.total += rows.shape[0] if weights is None else weights.sum()

    def __add__(self, other: "Moments") -> "Moments":
        """Pool two sets of rows."""
        d_input, d_target = self.input_target.shape
        pooled = Moments(d_input, d_target, self.input_target.device)
        pooled.input_input = self.input_input + other.input_input
        pooled.input_target = self.input_target + other.input_target
        pooled.total = self.total + other.total
        return pooled


RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
UNCHECKED_RIDGE = 1e-2


def ridge_regression(moments: Moments, ridge: float, prior: Tensor) -> Tensor:
    """Solve `argmin_B E|Y - X B|^2 + lambda |B - B_0|^2`, lambda = `ridge` times the mean diagonal of `E[X.T X]`.

    Args:
        moments: Sums of the fit.
        ridge: Penalty as a share of the inputs' mean square.
        prior: `B_0`, `[d_input, d_target]`, where the penalty pulls to.

    Returns:
        `B = B_0 + (X.T X + lambda)^-1 (X.T Y - X.T X B_0)`, `[d_input, d_target]`, float64.
    """
    start = prior.double()
    return start + _damped_solve(moments.input_input, moments.input_target - moments.input_input @ start, ridge)


def _damped_solve(gram: Tensor, missing: Tensor, ridge: float) -> Tensor:
    penalty = max(ridge, 1e-10) * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    damped = gram + penalty * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(missing, torch.linalg.cholesky(damped))


def validated_ridge_regression(fit: Moments, check: Moments, prior: Tensor) -> tuple[Tensor, float]:
    """Choose the ridge on rows that were not fitted, then solve on all of them.

    Args:
        fit: Moments of the larger share of the rows.
        check: Moments of the others; without any the ridge is `UNCHECKED_RIDGE`.
        prior: As in `ridge_regression`.

    Returns:
        The solution on fit and check together, float64, and the chosen ridge (one of `RIDGES`).
    """
    if float(check.total) == 0:
        return ridge_regression(fit, UNCHECKED_RIDGE, prior), UNCHECKED_RIDGE

    start = prior.double()
    missing = fit.input_target - fit.input_input @ start

    def error(ridge: float) -> float:
        solution = start + _damped_solve(fit.input_input, missing, ridge)
        quadratic = (solution * (check.input_input @ solution)).sum()
        return float(quadratic - 2 * (solution * check.input_target).sum())

    best = min(RIDGES, key=error)
    return ridge_regression(fit + check, best, prior), best


def principal_basis(second_moment: Tensor, size: int, outlier_channels: int = 0) -> Tensor:
    """Choose the orthonormal basis `Q` that keeps the most of the stream's second moment.

    Args:
        second_moment: `E[x x.T]` of the (RMS-normalised) residual stream, `[d_T, d_T]`.
        size: `d_S`, columns of `Q`.
        outlier_channels: Channels with the largest mean square that get an identity column each.

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
    vectors = torch.linalg.eigh(others).eigenvectors.flip(-1)[:, : size - outlier_channels]
    basis = torch.zeros(width, size, dtype=torch.float64, device=moment.device)
    basis[:, :outlier_channels] = identity[:, kept]
    basis[rest, outlier_channels:] = vectors
    return basis


def channel_selection(mean_magnitude: Tensor, size: int) -> Tensor:
    """Select the `size` channels with the largest mean |activation|, in channel order (RED, arXiv 2605.29327).

    Returns:
        `[d_T, size]` float64 with one 1 in each column.
    """
    chosen = mean_magnitude.argsort(descending=True)[:size].sort().values
    return torch.eye(mean_magnitude.shape[0], dtype=torch.float64, device=chosen.device)[:, chosen]


def effective_rank(second_moment: Tensor) -> Tensor:
    """Effective rank (Roy and Vetterli 2007): exp of the entropy of the states' normalised singular values.

    Args:
        second_moment: `X.T X` of the states, `[d, d]`; the singular values are the roots of its eigenvalues.

    Returns:
        Scalar float64 from 1 to d.
    """
    values = torch.linalg.eigvalsh(second_moment.double()).clamp_min(0).sqrt()
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
    gram = (head.float().T @ head.float()).double()
    metric = basis.T @ gram @ basis * normed.input_input
    answer = (basis.T @ gram @ normed.input_target.T).diagonal()
    ridge = 1e-6 * metric.diagonal().mean() * torch.eye(metric.shape[0], dtype=metric.dtype, device=metric.device)
    gain: Tensor = torch.linalg.solve(metric + ridge, answer)
    return gain
