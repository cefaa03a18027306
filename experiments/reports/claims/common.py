"""What the claims share: how findings are put down, runs of the real learner, fixed points, pictures."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor
from torch.func import vmap

from metarl import Inner, MetaLearner, Method, make_method, tree
from metarl.callbacks import Callback, Metrics
from metarl.experiments.common import cli
from metarl.inner import adapt
from metarl.types import TaskBatch, TaskSource


class Row(NamedTuple):
    """One checked statement."""

    claim: str
    source: str
    expected: str
    measured: str
    holds: bool
    required: bool = True
    """Whether the script fails without it: not for times, nor for what these numbers are known to speak against."""


class Findings(NamedTuple):
    """What came of a claim: the rows of its table, its picture, and what is to be said about both."""

    rows: list[Row]
    figure: Figure
    remarks: str


Vector: TypeAlias = Tensor
"""The parameters of a theory problem, {"w": [d]}, as one vector."""

Direction: TypeAlias = Callable[[Vector], Vector]
"""A mean meta-gradient as a function of w."""

TITLES = {"maml": "MAML", "hf_maml": "HF-MAML", "fo_maml": "FO-MAML"}
"""The updates of Fallah et al. 2020, by name, as the paper calls them."""


def random_point() -> Vector:
    """Where gradients on P2 are compared: five coordinates, the same each time."""
    return torch.as_tensor(np.random.default_rng(5).normal(size=5))


def direction(method: Method, tasks: TaskBatch) -> Direction:
    """The method's mean meta-gradient as a function of w."""

    def mean_meta_gradient(w: Vector) -> Vector:
        return tree.mean(method.update({"w": w}, tasks, method.inner).grads)["w"]

    return mean_meta_gradient


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


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """`|found - wanted| / |wanted|`."""
    return float((found - wanted).norm() / wanted.norm())


def rest(step: Direction, w: Vector, tolerance: float = 1e-13, at_most: int = 50) -> Vector:
    """Where a direction vanishes, by Newton's method on the direction itself: where descent along it comes to rest.

    Raises:
        ArithmeticError: when it does not get there.
    """
    g, before, jacobian = step(w), 0.0, torch.empty(0)
    for _ in range(at_most):
        if g.norm() <= tolerance:
            return w
        if g.norm() > 0.1 * before:  # a Jacobian is dear: it is kept as long as it serves
            jacobian = central_differences(step, w).T
        before = float(g.norm())
        w = w - torch.linalg.solve(jacobian, g)
        g = step(w)
    raise ArithmeticError(f"Newton's method has not found a zero: |g| = {g.norm():.1e} after {at_most} steps")


def grad_norm_at_rest(method: Method, tasks: TaskBatch, inner_lr: float, start: Vector) -> float:
    """`|grad F|` of MAML's objective where the method comes to rest, searched for from `start`."""
    return grad_norm(tasks, inner_lr)(rest(direction(method, tasks), start))


class Watch(Callback):
    """Keeps `measure(w)` before training and after every `every` iterations, in `seen`."""

    def __init__(self, measure: Callable[[Vector], float], every: int = 1) -> None:
        self.measure, self.every = measure, every
        self.at: list[int] = []
        self.seen: list[float] = []

    def on_start(self, learner: MetaLearner, total_iterations: int) -> None:
        self._look(learner)

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        if learner.iterations % self.every == 0:
            self._look(learner)

    def _look(self, learner: MetaLearner) -> None:
        self.at.append(learner.iterations)
        self.seen.append(self.measure(learner.params["w"]))


def descend(
    source: TaskSource,
    method: Method,
    iterations: int,
    learning_rate: float,
    meta_batch_size: int,
    *watches: Watch,
    seed: int = 0,
) -> Vector:
    """Plain gradient descent with the real learner; returns where it ended."""
    learner = MetaLearner(
        source,
        method,
        meta_batch_size=meta_batch_size,
        learning_rate=learning_rate,
        optimizer=torch.optim.SGD,
        seed=seed,
    )
    cli.learn(learner, iterations, watches)
    return learner.params["w"]


def scientific(value: float) -> str:
    """Three digits: `0.0142`, `1.42e-05`."""
    return f"{value:.3g}"


def near(value: float, wanted: float, within: float = 0.05) -> bool:
    """Whether a figure quoted with two digits is met."""
    return abs(value - wanted) <= within * wanted


def listing(values: Sequence[float]) -> str:
    """Numbers with commas between."""
    return ", ".join(f"{value:.2g}" for value in values)


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side, with a light grid."""
    figure = Figure(figsize=(4.6 * count, 3.7), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)  # no global pyplot state, no window
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def label(ax: Axes, title: str, x: str, y: str, *, legend: bool = True) -> None:
    """Title, axis labels and with `legend`, a small legend."""
    ax.set_title(title, fontsize=10)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel=x, ylabel=y)
    if legend:
        ax.legend(fontsize=8)


def slope(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The power p of the best fit y ~ x^p."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
