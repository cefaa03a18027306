"""Numerical tools of the claims: exact directions, finite differences, fixed points, runs of the real learner."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import vmap

from metarl import Inner, MetaLearner, Method, make_method, tree
from metarl.callbacks import Callback, Metrics
from metarl.experiments.common import cli
from metarl.inner import adapt
from metarl.step import OptimizerStep, OuterStep
from metarl.theory.logistic import logistic_tasks, six_logistic_tasks, smoothness
from metarl.types import TaskBatch, TaskSource

Vector: TypeAlias = Tensor
"""The parameters of a theory problem, {"w": [d]}, as one vector."""

Direction: TypeAlias = Callable[[Vector], Vector]
"""A mean meta-gradient as a function of w."""

P2 = six_logistic_tasks()
"""Six logistic regressions in five dimensions."""

TASKS = logistic_tasks(P2)
"""P2 with full batches."""

L = smoothness(P2)
"""The smoothness constant of P2."""

ORIGIN = torch.zeros(5, dtype=torch.float64)
"""Where runs on P2 start."""

POINT = torch.as_tensor(np.random.default_rng(5).normal(size=5))
"""A fixed random point where gradients on P2 are compared."""


def direction(method: Method, tasks: TaskBatch) -> Direction:
    """The method's mean meta-gradient as a function of w."""
    return lambda w: tree.mean(method.update({"w": w}, tasks, method.inner).grads)["w"]


def grad_norm(tasks: TaskBatch, inner_lr: float, inner_steps: int = 1) -> Callable[[Vector], float]:
    """`|grad F(w)|` of MAML's objective, exact on full batches: what the theorems bound."""
    exact = direction(make_method("maml", inner_lr, inner_steps), tasks)
    return lambda w: exact(w).norm().item()


def objective(tasks: TaskBatch, inner: Inner) -> Callable[[Vector], Tensor]:
    """The mean loss after adaptation, a scalar, as a function of w."""

    def value(w: Vector) -> Tensor:
        end = adapt({"w": w}, tasks, inner)
        return vmap(tasks.loss)(end, tasks.draw(end, "outer")).mean()

    return value


def central_differences(function: Callable[[Vector], Tensor], w: Vector, h: float = 1e-3) -> Tensor:
    """The derivative of `function` along each coordinate, stacked; the error is of the fourth order in `h`."""

    def along(e: Vector) -> Tensor:
        near, far = function(w + e) - function(w - e), function(w + 2 * e) - function(w - 2 * e)
        return (8 * near - far) / (12 * h)

    return torch.stack([along(e) for e in h * torch.eye(len(w), dtype=w.dtype)])


def difference_quotient(function: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-5) -> Tensor:
    """The derivative of a function that acts on each entry alone; the error is of the second order in `h`."""
    return (function(x + h) - function(x - h)) / (2 * h)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """`|found - exact| / |exact|`."""
    return float((found - exact).norm() / exact.norm())


def numeric_error(found: Vector, tasks: TaskBatch, inner: Inner, h: float = 1e-3) -> float:
    """The relative error of a meta-gradient at POINT, against central differences of the objective."""
    return relative_error(found, central_differences(objective(tasks, inner), POINT, h))


def slope(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The power p of the best fit y ~ x^p."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def find_zero(step: Direction, w: Vector, tolerance: float = 1e-13, max_steps: int = 50) -> Vector:
    """The zero of a direction near `w`, by Newton's method: the point where descent along it stops.

    Raises:
        ArithmeticError: when Newton's method does not converge.
    """
    g, before, jacobian = step(w), 0.0, torch.empty(0)
    for _ in range(max_steps):
        if g.norm() <= tolerance:
            return w
        if g.norm() > 0.1 * before:  # a Jacobian is expensive: reuse it while it makes good progress
            jacobian = central_differences(step, w).T
        before = float(g.norm())
        w = w - torch.linalg.solve(jacobian, g)
        g = step(w)
    raise ArithmeticError(f"Newton's method did not find a zero: |g| = {g.norm():.1e} after {max_steps} steps")


def floor(method: Method, tasks: TaskBatch, inner_lr: float, start: Vector) -> float:
    """`|grad F|` of MAML's objective at the method's fixed point near `start`."""
    return grad_norm(tasks, inner_lr)(find_zero(direction(method, tasks), start))


class Descent(Callback):
    """A run: `measure(w)` before training and after every `every` iterations in `seen`, step sizes, and the end."""

    end: Vector

    def __init__(self, measure: Callable[[Vector], float], every: int) -> None:
        self.measure, self.every = measure, every
        self.at: list[int] = []
        self.seen: list[float] = []
        self.outer_lr: list[float] = []

    def on_start(self, learner: MetaLearner, total_iterations: int) -> None:
        self._look(learner)

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        self.outer_lr.append(metrics.get("train/outer_lr", float("nan")))
        if learner.iterations % self.every == 0:
            self._look(learner)

    def _look(self, learner: MetaLearner) -> None:
        self.at.append(learner.iterations)
        self.seen.append(self.measure(learner.params["w"]))


def descend(
    source: TaskSource,
    method: Method,
    iterations: int,
    step: float | OuterStep,
    num_tasks: int,
    measure: Callable[[Vector], float] = lambda w: w.norm().item(),
    every: int = 1,
) -> Descent:
    """Plain gradient descent with the real learner; `step` may be a step size."""
    if isinstance(step, float):
        step = OptimizerStep(source.initial_params(), torch.optim.SGD, step)
    descent = Descent(measure, every)
    learner = MetaLearner.from_parts(source, method, step, meta_batch_size=num_tasks)
    cli.learn(learner, iterations, [descent])
    descent.end = learner.params["w"]
    return descent
