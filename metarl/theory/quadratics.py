"""Quadratic tasks, where every method's meta-gradient and fixed point is known in closed form.

    f_i(w) = (w - c_i)^T A_i (w - c_i) / 2,    G_i(w) = M_i (w - c_i),    fixed point: mean_i M_i (w - c_i) = 0

with a matrix M_i that is the method's (N inner steps of size alpha):

    MAML, HF-MAML          A (I - alpha A)^{2N}
    FO-MAML                A (I - alpha A)^N
    FO-MuML, S steps       A sum_{k=0..S} (-alpha A)^k, which tends to (I + alpha A)^{-1} A, the Moreau envelope's

If the curvatures A_i differ, so do the three objectives and their fixed points. In the stochastic settings a data point
is a noisy centre, c_i + noise xi.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl.errors import check_int, check_real
from metarl.random import torch_generator
from metarl.supervised.oracle import BatchSizes, FiniteSumSource, FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.types import Batch, Params, Role


class Quadratics(NamedTuple):
    """T quadratic tasks in d dimensions."""

    curvatures: Tensor  # [T, d, d], symmetric
    centres: Tensor  # [T, d]


def quadratics_1d(curvatures: Sequence[float] = (1.0, 2.0), centres: Sequence[float] = (1.0, -1.0)) -> Quadratics:
    """One-dimensional tasks `a_i (w - c_i)^2 / 2`; on the default pair FO-MAML (alpha = 1/4) stops at -1/7.

    Raises:
        ValueError: when curvatures and centres differ in number, or are empty.
    """
    if len(curvatures) != len(centres) or not len(curvatures):
        raise ValueError(
            f"centres and curvatures must have one length, at least 1, got {len(centres)} and {len(curvatures)}"
        )
    a, c = (torch.tensor([float(x) for x in values], dtype=torch.float64) for values in (curvatures, centres))
    return Quadratics(a[:, None, None], c[:, None])


def random_quadratics(
    rng: np.random.Generator,
    num_tasks: int,
    dimension: int,
    eigenvalues: tuple[float, float] = (0.1, 1.0),
    spread: float = 1.0,
) -> Quadratics:
    """Random tasks: uniform `eigenvalues` between (lowest, highest), random eigenvectors, centres normal(0, `spread`).

    A negative lowest eigenvalue makes saddles: fine for the variance of an estimator, but descent has no minimum.

    Example:
        >>> random_quadratics(np.random.default_rng(0), num_tasks=3, dimension=2).curvatures.shape
        torch.Size([3, 2, 2])
    """
    check_int("num_tasks", num_tasks)
    check_int("dimension", dimension)
    low, high = (check_real("eigenvalues", x, -np.inf) for x in eigenvalues)
    if low > high:
        raise ValueError(f"eigenvalues must be (lowest, highest), got {eigenvalues}")
    basis = np.linalg.qr(rng.normal(size=(num_tasks, dimension, dimension)))[0]
    values = rng.uniform(low, high, (num_tasks, 1, dimension))
    centres = check_real("spread", spread, open_low=False) * rng.normal(size=(num_tasks, dimension))
    return Quadratics(torch.as_tensor((basis * values) @ basis.swapaxes(1, 2)), torch.as_tensor(centres))


def quadratic_loss(params: Params, batch: Batch) -> Tensor:
    """The mean over points of `(w - c)^T A (w - c) / 2`, for `A [n, d, d]` and `c [n, d]`."""
    offset = params["w"] - batch["c"]
    return 0.5 * torch.einsum("ni,nij,nj->n", offset, batch["A"], offset).mean()


def quadratic_tasks(
    problem: Quadratics,
    *,
    points: int = 1,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
    batch_sizes: BatchSizes = BatchSizes(),  # noqa: B008 (an immutable value)
    generator: torch.Generator | None = None,
) -> FiniteSumTaskBatch:
    """The finite sum: `points` data points for each task; their mean is exactly the task's centre.

    Args:
        problem: the tasks.
        points: n, data points for each task.
        noise: standard deviation of the points around their centre.
        rng: draws the noise.
        batch_sizes: see `FiniteSumTaskBatch`, also for `generator`.

    Raises:
        ValueError: for noise without `rng`, or with fewer than two points.
    """
    check_int("points", points)
    c = problem.centres[:, None].expand(-1, points, -1)  # [T, n, d]
    if check_real("noise", noise, open_low=False) > 0:
        if rng is None or points < 2:
            raise ValueError(f"noise needs rng and at least two points, got rng={rng} and points={points}")
        xi = torch.as_tensor(rng.normal(size=c.shape))
        c = c + noise * (xi - xi.mean(1, keepdim=True))
    data = {"A": _for_each_point(problem.curvatures, points), "c": c}
    return FiniteSumTaskBatch(quadratic_loss, data, batch_sizes=batch_sizes, generator=generator)


def resampled_quadratics(
    problem: Quadratics,
    generator: torch.Generator,
    sizes: BatchSizes = BatchSizes(1, 1, 1),  # noqa: B008 (an immutable value)
    noise: float = 1.0,
) -> ResamplingTaskBatch:
    """The resampling version: every draw has fresh points normal(c_i, `noise`); `sizes` are their numbers."""
    noise = check_real("noise", noise, open_low=False)
    sizes.check_all_given("sizes")

    def sampler(role: Role, generator: torch.Generator) -> Batch:
        n = getattr(sizes, role)
        tasks, dimension = problem.centres.shape
        xi = torch.randn(tasks, n, dimension, generator=generator, dtype=problem.centres.dtype)
        return {"A": _for_each_point(problem.curvatures, n), "c": problem.centres[:, None] + noise * xi}

    return ResamplingTaskBatch(quadratic_loss, len(problem.centres), sampler, generator)


def quadratic_source(
    problem: Quadratics, start: Tensor | None = None, tasks: FiniteSumTaskBatch | None = None
) -> FiniteSumSource:
    """A source of these tasks for training from `start` (default: zero).

    Args:
        problem: the tasks.
        start: the parameters before training, `[d]`.
        tasks: from `quadratic_tasks(problem, ...)`; default: without noise.
    """
    tasks = quadratic_tasks(problem) if tasks is None else tasks
    start = torch.zeros_like(problem.centres[0]) if start is None else start
    return FiniteSumSource(tasks, {"w": start})


@dataclass(eq=False)
class FreshQuadratics:
    """A distribution over quadratic tasks, resampled: new tasks at every `sample`, new points at every draw.

    Args:
        dimension: d.
        eigenvalues: lowest and highest of the curvatures, see `random_quadratics`.
        spread: standard deviation of the centres.
        noise: standard deviation of the points around them.
        sizes: points for each draw.

    Example:
        >>> FreshQuadratics(dimension=3).sample(2, np.random.default_rng(0)).draw({}, "inner")["c"].shape
        torch.Size([2, 10, 3])
    """

    dimension: int = 5
    eigenvalues: tuple[float, float] = (0.1, 1.0)
    spread: float = 1.0
    noise: float = 1.0
    sizes: BatchSizes = BatchSizes(10, 10, 10)  # noqa: RUF009 (an immutable value)
    score_name: ClassVar[str] = "minus_loss"

    def __post_init__(self) -> None:
        self.sample(1, np.random.default_rng(0))  # finds bad arguments early

    def initial_params(self) -> Params:
        """Zero."""
        return {"w": torch.zeros(self.dimension, dtype=torch.float64)}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> ResamplingTaskBatch:
        """New tasks."""
        problem = random_quadratics(rng, num_tasks, self.dimension, self.eigenvalues, self.spread)
        generator = torch_generator(rng)
        return resampled_quadratics(problem, generator, self.sizes, self.noise)


# Closed forms. In each, `curvatures` is A `[T, d, d]` and the result is M `[T, d, d]`.


def maml_matrix(curvatures: Tensor, inner_lr: float, steps: int = 1) -> Tensor:
    """A (I - alpha A)^{2N}: every step contributes a factor in the adaptation and another in the pull-back."""
    return curvatures @ _power(curvatures, inner_lr, 2 * steps)


def fo_maml_matrix(curvatures: Tensor, inner_lr: float, steps: int = 1) -> Tensor:
    """A (I - alpha A)^N."""
    return curvatures @ _power(curvatures, inner_lr, steps)


def moreau_matrix(curvatures: Tensor, inner_lr: float, steps: int | None = None) -> Tensor:
    """A (I + alpha A)^{-1}, the gradient of the Moreau envelope; with `steps`, FO-MuML's approximation of it."""
    eye = torch.eye(curvatures.shape[-1], dtype=curvatures.dtype)
    if steps is None:
        limit: Tensor = torch.linalg.solve(eye + inner_lr * curvatures, curvatures)
        return limit
    offset = eye.expand_as(curvatures)  # z_s - c, as a matrix times w - c
    for _ in range(steps):
        offset = eye - inner_lr * curvatures @ offset
    return curvatures @ offset


def fixed_point(problem: Quadratics, matrices: Tensor) -> Tensor:
    """Where `mean_i M_i (w - c_i)` vanishes, `[d]`.

    Example:
        >>> problem = quadratics_1d()
        >>> float(fixed_point(problem, fo_maml_matrix(problem.curvatures, 0.25)))  # -1/7
        -0.142857...
    """
    right = torch.einsum("tij,tj->i", matrices, problem.centres) / len(matrices)
    w: Tensor = torch.linalg.solve(matrices.mean(0), right)
    return w


def mean_gradient(problem: Quadratics, matrices: Tensor, w: Tensor) -> Tensor:
    """`mean_i M_i (w - c_i)` at `w [d]`; with `maml_matrix` it is MAML's exact grad F."""
    return torch.einsum("tij,tj->i", matrices, w - problem.centres) / len(matrices)


def _power(curvatures: Tensor, inner_lr: float, steps: int) -> Tensor:
    """(I - alpha A)^steps."""
    factor = torch.eye(curvatures.shape[-1], dtype=curvatures.dtype) - inner_lr * curvatures
    result: Tensor = torch.linalg.matrix_power(factor, steps)
    return result


def _for_each_point(curvatures: Tensor, points: int) -> Tensor:
    return curvatures[:, None].expand(-1, points, -1, -1)  # [T, n, d, d]
