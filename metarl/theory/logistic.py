"""Logistic regression tasks with exact constants: smooth but not quadratic; random and on real data.

    f_t(w) = mean_j margin(y_j x_j^T w) + regulariser(w)

The margin loss is the logistic one, log(1 + exp(-m)), or the sigmoid 1 / (1 + exp(m)), which is not convex. The
regulariser is s/2 |w|^2 or the bounded s/2 sum_k w_k^2 / (1 + w_k^2), which is not convex either.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl.elementwise import sigmoid, softplus
from metarl.errors import check_choice, check_int, check_real
from metarl.random import torch_generator
from metarl.supervised.digits import import_optional
from metarl.supervised.oracle import BatchSizes, FiniteSumSource, FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.types import Batch, Loss, Params, Role


class Term(NamedTuple):
    """A term of the loss, with the largest absolute values of its second and third derivatives."""

    function: Callable[[Tensor], Tensor]  # elementwise
    second: float
    third: float


MARGINS = {
    "logistic": Term(lambda m: softplus(-m), 1 / 4, 1 / (6 * math.sqrt(3))),
    "sigmoid": Term(lambda m: sigmoid(-m), 1 / (6 * math.sqrt(3)), 1 / 8),
}
"""Losses of the margin m = y x^T w."""

REGULARISERS = {
    "ridge": Term(lambda w: w.square() / 2, 1.0, 0.0),
    "bounded": Term(
        lambda w: w.square() / (1 + w.square()) / 2, 1.0, 3 * math.sin(0.4 * math.pi) * math.cos(0.1 * math.pi) ** 4
    ),
}
"""Regularisers of strength one."""


class Logistic(NamedTuple):
    """T tasks of n labelled points in d dimensions."""

    x: Tensor  # [T, n, d]
    y: Tensor  # [T, n], -1 or 1
    strength: float = 0.05  # s
    margin: str = "logistic"
    regulariser: str = "ridge"


def six_logistic_tasks() -> Logistic:
    """Six fixed tasks of 40 points in five dimensions, L = 0.52758: P2 in docs/theory.md."""
    return random_logistic(np.random.default_rng(0), 6)


def random_logistic(
    rng: np.random.Generator,
    num_tasks: int,
    points: int = 40,
    dimension: int = 5,
    spread: float = 3.0,
    label_noise: float = 0.3,
    strength: float = 0.05,
) -> Logistic:
    """Random tasks: teacher `spread` * normal(d), x normal(d), y the sign of the teacher's margin plus noise."""
    for name, value in (("num_tasks", num_tasks), ("points", points), ("dimension", dimension)):
        check_int(name, value)
    for name, number in (("spread", spread), ("label_noise", label_noise), ("strength", strength)):
        check_real(name, number, open_low=False)
    xs, ys = [], []
    for _ in range(num_tasks):
        teacher = spread * rng.normal(size=dimension)
        x = rng.normal(size=(points, dimension))
        xs.append(x)
        ys.append(np.sign(x @ teacher + label_noise * rng.normal(size=points)))
    return Logistic(torch.as_tensor(np.stack(xs)), torch.as_tensor(np.stack(ys)), strength)


REAL_DATA = ("breast_cancer", "digits", "iris", "wine")


def real_logistic(name: str, strength: float = 0.05) -> Logistic:
    """Tasks from a data set of scikit-learn, with standardised features and a constant one.

    `iris`, `wine` and `digits`: one task for each class, this class against the rest, on the same points.
    `breast_cancer`: malignant or benign, one task for each quarter of the patients in order of mean texture.

    Raises:
        ValueError: for another name, or without scikit-learn.
    """
    check_choice("name", name, REAL_DATA)
    datasets = import_optional("sklearn.datasets", "scikit-learn")
    features, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    scale = features.std(0)
    x = (features - features.mean(0)) / np.where(scale > 0, scale, 1.0)  # some pixels are constant
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    if name == "breast_cancer":
        n = len(x) // 4
        groups = np.argsort(features[:, 1], kind="stable")[: 4 * n].reshape(4, n)
        xs, ys = x[groups], np.where(labels[groups] == 1, 1.0, -1.0)
    else:
        classes = np.unique(labels)
        xs = np.broadcast_to(x, (len(classes), *x.shape)).copy()
        ys = np.where(labels == classes[:, None], 1.0, -1.0)
    return Logistic(torch.as_tensor(xs), torch.as_tensor(ys), check_real("strength", strength, open_low=False))


def logistic_loss(strength: float = 0.05, margin: str = "logistic", regulariser: str = "ridge") -> Loss:
    """The loss of one task on a batch `X [n, d]`, `y [n]`."""
    of_margin = MARGINS[check_choice("margin", margin, MARGINS)].function
    of_weight = REGULARISERS[check_choice("regulariser", regulariser, REGULARISERS)].function

    def loss(params: Params, batch: Batch) -> Tensor:
        w = params["w"]
        return of_margin(batch["y"] * (batch["X"] @ w)).mean() + strength * of_weight(w).sum()

    return loss


def accuracy(params: Params, batch: Batch) -> Tensor:
    """The fraction of correctly classified points; a point on the border counts half (at w = 0 all are there)."""
    return (batch["y"] * (batch["X"] @ params["w"])).sign().mean() / 2 + 0.5


def smoothness(problem: Logistic) -> float:
    """L, an upper bound on the curvature of every task: margin'' lambda_max(X^T X) / n + s, exact at w = 0 for P2."""
    gram = problem.x.mT @ problem.x / problem.x.shape[1]
    return MARGINS[problem.margin].second * _largest(gram) + problem.strength


def hessian_smoothness(problem: Logistic) -> float:
    """rho, an upper bound on the Hessians' Lipschitz constant.

    `margin''' lambda_max(mean |x| x x^T) + s regulariser'''`, with the largest values of the derivatives.
    """
    weighted = problem.x.mT @ (problem.x.norm(dim=2, keepdim=True) * problem.x) / problem.x.shape[1]
    third = problem.strength * REGULARISERS[problem.regulariser].third
    return MARGINS[problem.margin].third * _largest(weighted) + third


def _largest(matrices: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrices).max())


def logistic_tasks(
    problem: Logistic,
    *,
    support: int | None = None,
    rng: np.random.Generator | None = None,
    batch_sizes: BatchSizes = BatchSizes(),  # noqa: B008 (an immutable value)
    generator: torch.Generator | None = None,
) -> FiniteSumTaskBatch:
    """The finite sum; the score is the accuracy.

    Args:
        problem: the tasks.
        support: number of random points of each task in its support set; the others are its query set. `None` uses all
            points for both.
        rng: chooses them.
        batch_sizes: see `FiniteSumTaskBatch`, also for `generator`.

    Raises:
        ValueError: for a support set that leaves no query points, or only one of `support` and `rng`.
    """
    if (support is None) != (rng is None):
        raise ValueError(f"support and rng must be given together, got support={support!r} and rng={rng!r}")
    inner: Batch = {"X": problem.x, "y": problem.y}
    outer = None
    if support is not None and rng is not None:
        inner, outer = _split(inner, support, rng)
    return FiniteSumTaskBatch(
        logistic_loss(problem.strength, problem.margin, problem.regulariser),
        inner,
        outer,
        accuracy,
        batch_sizes=batch_sizes,
        generator=generator,
    )


def _split(data: Batch, support: int, rng: np.random.Generator) -> tuple[Batch, Batch]:
    tasks, points = data["y"].shape
    if check_int("support", support) >= points:
        raise ValueError(f"support must leave some of the {points} points for the query set, got {support}")
    order = torch.as_tensor(rng.permuted(np.tile(np.arange(points), (tasks, 1)), axis=1))
    shuffled = {key: leaf[torch.arange(tasks)[:, None], order] for key, leaf in data.items()}
    return {k: v[:, :support] for k, v in shuffled.items()}, {k: v[:, support:] for k, v in shuffled.items()}


def logistic_source(problem: Logistic, tasks: FiniteSumTaskBatch | None = None) -> FiniteSumSource:
    """A source of these tasks for training from zero; `tasks` from `logistic_tasks(problem, ...)`."""
    tasks = logistic_tasks(problem) if tasks is None else tasks
    return FiniteSumSource(tasks, {"w": torch.zeros_like(problem.x[0, 0])}, "accuracy")


@dataclass(eq=False)
class FreshLogistic:
    """A distribution over logistic tasks, resampled: new teachers at every `sample`, new points at every draw.

    Args:
        dimension: d.
        spread: standard deviation of the teachers' weights.
        label_noise: standard deviation of the noise on the teacher's margin, whose sign is the label.
        strength: of the ridge.
        sizes: points for each draw.

    Example:
        >>> FreshLogistic(dimension=3).sample(2, np.random.default_rng(0)).draw({}, "inner")["X"].shape
        torch.Size([2, 10, 3])
    """

    dimension: int = 5
    spread: float = 3.0
    label_noise: float = 0.3
    strength: float = 0.05
    sizes: BatchSizes = BatchSizes(10, 10, 10)  # noqa: RUF009 (an immutable value)
    score_name: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        check_int("dimension", self.dimension)
        for name in ("spread", "label_noise", "strength"):
            check_real(name, getattr(self, name), open_low=False)
        self.sizes.check_all_given("sizes")
        self._loss = logistic_loss(self.strength)

    def initial_params(self) -> Params:
        """Zero."""
        return {"w": torch.zeros(self.dimension, dtype=torch.float64)}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> ResamplingTaskBatch:
        """New tasks."""
        teachers = torch.as_tensor(self.spread * rng.normal(size=(check_int("num_tasks", num_tasks), self.dimension)))

        def sampler(role: Role, generator: torch.Generator) -> Batch:
            shape = (num_tasks, getattr(self.sizes, role), self.dimension)
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            noise = self.label_noise * torch.randn(shape[:2], generator=generator, dtype=torch.float64)
            margins = torch.einsum("tnd,td->tn", x, teachers) + noise
            return {"X": x, "y": torch.where(margins >= 0, 1.0, -1.0).to(x)}

        generator = torch_generator(rng)
        return ResamplingTaskBatch(self._loss, num_tasks, sampler, generator, accuracy)
