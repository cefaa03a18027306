"""Estimates of the constants in the convergence theorems, at given parameters, for any batch of tasks.

| | what | how |
| --- | --- | --- |
| L | Lipschitz constant of the tasks' gradients | largest eigenvalue of the Hessians, by power iteration |
| rho | Lipschitz constant of their Hessians | power iteration on `(H(u) - H(v)) / norm(u - v)` for points near w |
| sigma | spread of the tasks' gradients, `sqrt(mean_i norm(g_i - mean g)^2)` | variance over tasks, minus the noise |
| sigma~ | standard deviation of one sample's gradient | variance between draws, times samples per draw |
| sigma_H | the same of one sample's Hessian, in Frobenius norm | as sigma~, on products with random vectors |

L and rho are local, and power iteration approaches them from below: they are **lower bounds** of the theorems'
constants, at the points that were tried. Sampling noise in a small batch raises both.
"""

import itertools
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from metarl import tree
from metarl.derivatives import gradients, hessian_vector_products
from metarl.errors import check_int, check_real
from metarl.random import torch_generator
from metarl.types import Batch, Params, TaskBatch, TaskSource


class Constants(NamedTuple):
    """Constants of a problem, named as in the theorems."""

    L: float
    rho: float
    sigma: float
    sample_sigma: float  # sigma~
    hessian_sigma: float  # sigma_H


class Estimation(NamedTuple):
    """How much work goes into an estimate."""

    iterations: int = 20  # of each power iteration
    pairs: int = 4  # pairs of points for rho, different for every task
    radius: float = 0.1  # their largest distance from w
    draws: int = 8  # for the variances
    population: int | None = None  # for draws without replacement: the number of points to draw from


def estimate(
    params: Params,
    tasks: TaskBatch,
    generator: torch.Generator,
    estimation: Estimation = Estimation(),  # noqa: B008 (an immutable value)
) -> Constants:
    """The constants of `tasks` at `params` (not stacked): the largest L and rho, the mean of the variances.

    sigma is that of exactly these tasks. Draws without noise have sigma~ = sigma_H = 0.

    Raises:
        ValueError: for bad settings, naming them.
    """
    _check(estimation)
    w = tree.broadcast(params, tasks.num_tasks)
    # L and rho use the first draw; the variances compare all of them
    batches = [tasks.draw(w, "hessian") for _ in range(estimation.draws)]
    samples = per_sample(tasks, batches[0], estimation.population)
    noise, sigma = _gradient_deviations(tasks, w, batches)
    return Constants(
        L=float(_smoothness(tasks, w, batches[0], generator, estimation.iterations).max()),
        rho=float(_hessian_lipschitz(tasks, w, batches[0], generator, estimation).max()),
        sigma=sigma,
        sample_sigma=samples**0.5 * noise,
        hessian_sigma=samples**0.5 * _hessian_deviation(tasks, w, batches, generator),
    )


def estimate_source(
    source: TaskSource,
    num_tasks: int,
    rng: np.random.Generator,
    params: Params | None = None,
    estimation: Estimation = Estimation(),  # noqa: B008 (an immutable value)
) -> Constants:
    """The constants of `num_tasks` tasks of `source`, at `params` or where training starts.

    Example:
        >>> from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
        >>> data = {"a": torch.tensor([1.0, 3.0]), "c": torch.tensor([0.0, 1.0])}
        >>> tasks = FiniteSumTaskBatch(lambda w, b: b["a"] * (w["x"] - b["c"]) ** 2 / 2, data)
        >>> source = FiniteSumSource(tasks, {"x": torch.tensor(2.0)})
        >>> estimate_source(source, 2, np.random.default_rng(0))  # gradients 2 and 3
        Constants(L=3.0, rho=0.0, sigma=0.5, sample_sigma=0.0, hessian_sigma=0.0)
    """
    params = source.initial_params() if params is None else params
    tasks = source.sample(check_int("num_tasks", num_tasks), rng)
    return estimate(params, tasks, torch_generator(rng), estimation)


def estimate_smoothness(
    params: Params,
    tasks: TaskBatch,
    generator: torch.Generator,
    iterations: int = 20,
    names: Collection[str] | None = None,
) -> Tensor:
    """Every task's largest absolute eigenvalue of the Hessian at `params` (not stacked), `[T]`; L is their maximum.

    With `names` it is that of the block of these parameters, which limits the step size of inner steps that move them
    alone.
    """
    w = tree.broadcast(params, tasks.num_tasks)
    return _smoothness(tasks, w, tasks.draw(w, "hessian"), generator, check_int("iterations", iterations), names)


def operator_norms(
    product: Callable[[Params], Params], like: Params, generator: torch.Generator, iterations: int
) -> Tensor:
    """Norms of symmetric operators by power iteration, `[T]`: `|H v|` for a unit v, which grows towards `|H|`.

    Args:
        product: multiplies stacked vectors by every task's operator.
        like: stacked vectors of the right shapes.
        generator: draws the initial directions.
        iterations: number of products.
    """
    v = _random_directions(like, generator)
    for _ in range(iterations):
        v = product(_unit(v))
    return vmap(tree.norm)(v)


def per_sample(tasks: TaskBatch, batch: Batch, population: int | None = None) -> float:
    """The factor from the variance between draws like `batch` to the variance of one sample.

    It is n, the samples per task and draw. Draws without replacement from M points vary less, and the factor is
    `n (M - 1) / (M - n)`.

    Raises:
        ValueError: when a draw has all M points, so draws say nothing about their variance.
    """
    n = tasks.cost(batch)["samples"] / tasks.num_tasks
    if population is None:
        return n
    if population <= n:
        raise ValueError(f"population must be more than the {n:g} samples of a draw, got {population}")
    return n * (population - 1) / (population - n)


def _smoothness(
    tasks: TaskBatch,
    w: Params,
    batch: Batch,
    generator: torch.Generator,
    iterations: int,
    names: Collection[str] | None = None,
) -> Tensor:
    def block(v: Params) -> Params:
        return v if names is None else {k: x if k in names else torch.zeros_like(x) for k, x in v.items()}

    def product(v: Params) -> Params:
        return block(hessian_vector_products(tasks, w, batch, block(v)))

    return operator_norms(product, w, generator, iterations)


def _hessian_lipschitz(
    tasks: TaskBatch, w: Params, batch: Batch, generator: torch.Generator, estimation: Estimation
) -> Tensor:
    """The largest `|H(a) - H(b)| / |a - b|` over pairs, `[T]`; both Hessians use the same batch."""

    def try_pair() -> Tensor:
        a, b = (_nearby(w, estimation.radius, generator) for _ in range(2))

        def difference(v: Params) -> Params:
            return tree.subtract(*(hessian_vector_products(tasks, point, batch, v) for point in (a, b)))

        distance = vmap(tree.norm)(tree.subtract(a, b))
        return operator_norms(difference, w, generator, estimation.iterations) / distance

    return torch.stack([try_pair() for _ in range(estimation.pairs)]).amax(0)


def _gradient_deviations(tasks: TaskBatch, w: Params, batches: list[Batch]) -> tuple[float, float]:
    """The standard deviations of one draw's gradient, and of the tasks' gradients around their mean.

    The tasks' mean gradients over R draws are noisy, too, which adds `(1 - 1/T) noise^2 / R` to their variance.
    """
    grads = torch.stack([tree.flatten(gradients(tasks, w, batch)) for batch in batches])  # [R, T, P]
    shifted = grads - grads[0]  # exactly zero where draws have no noise
    noise = shifted.var(0).sum(-1).mean()
    means = grads[0] + shifted.mean(0)
    between = (means - means.mean(0)).square().sum(-1).mean()
    debiased = between - (1 - 1 / tasks.num_tasks) * noise / len(batches)
    return float(noise.sqrt()), float(debiased.clamp(min=0).sqrt())


def _hessian_deviation(tasks: TaskBatch, w: Params, batches: list[Batch], generator: torch.Generator) -> float:
    """The standard deviation of one draw's Hessian in Frobenius norm: `E |M v|^2 = |M|_F^2` for a normal v."""
    squares = []
    for one, other in itertools.pairwise(batches):
        v = _random_directions(w, generator)
        difference = tree.subtract(*(hessian_vector_products(tasks, w, batch, v) for batch in (one, other)))
        squares.append(vmap(tree.dot)(difference, difference).mean() / 2)
    return float(torch.stack(squares).mean().sqrt())


def _random_directions(like: Params, generator: torch.Generator) -> Params:
    """Standard normal vectors; the generator may live on another device than the parameters."""
    return {
        key: torch.randn(leaf.shape, generator=generator, device=generator.device, dtype=leaf.dtype).to(leaf)
        for key, leaf in like.items()
    }


def _unit(vectors: Params) -> Params:
    """Every task's vector with length 1; zero stays zero."""

    def scaled(v: Params) -> Params:
        size = tree.norm(v)
        return tree.tree_map(lambda leaf: leaf / torch.where(size > 0, size, 1.0), v)

    return vmap(scaled)(vectors)


def _nearby(w: Params, radius: float, generator: torch.Generator) -> Params:
    """A point for every task in a random direction from w, at a distance uniform in (0, `radius`)."""
    leaf = tree.float_leaf(w)
    distances = radius * torch.rand(len(leaf), generator=generator, device=generator.device, dtype=leaf.dtype).to(leaf)
    return vmap(tree.add_scaled)(w, distances, _unit(_random_directions(w, generator)))


def _check(estimation: Estimation) -> None:
    for name, minimum in (("iterations", 1), ("pairs", 1), ("draws", 2)):
        check_int(name, getattr(estimation, name), minimum)
    check_real("radius", estimation.radius)
    if estimation.population is not None:
        check_int("population", estimation.population)
