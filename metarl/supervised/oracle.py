"""Supervised task batches: fixed data sets (the finite sum), or fresh data at every draw (resampling).

In the finite sum every task has a support set S_i for the inner loss and a query set T_i for the outer loss. Full
batches are the deterministic setting of the theory; with minibatches D_in, D_o and D_h are independent random subsets.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from metarl.derivatives import one_number
from metarl.errors import check_callable, check_has, check_int, check_tensors, check_type
from metarl.random import torch_generator
from metarl.tree import detach
from metarl.types import Batch, Loss, Params, Role
from metarl.wrappers import TaskSlice


class BatchSizes(NamedTuple):
    """How many data points each task uses in a draw; `None` uses all of them."""

    inner: int | None = None
    outer: int | None = None
    hessian: int | None = None

    def check_all_given(self, name: str) -> None:
        """Raise a `ValueError` where a size is `None`: resampling has no set to take all of."""
        for role, size in self._asdict().items():
            check_int(f"{name}.{role}", size)


class SupervisedTaskBatch:
    """Shared by both settings: a loss, a score, and data that do not depend on the parameters."""

    def __init__(self, loss: Loss, score: Loss | None = None) -> None:
        check_callable("loss", loss, "a function (params, batch) -> scalar")
        if score is not None:
            check_callable("score", score, "a function (params, batch) -> scalar, or None")
        self.loss = self.frozen_loss = loss  # the same: the data do not depend on the parameters
        self.score = _minus(loss) if score is None else score

    @staticmethod
    def log_likelihood(params: Params, batch: Batch) -> Tensor:
        """Zero for each data point: the data do not depend on the parameters."""
        return torch.zeros_like(SupervisedTaskBatch.objective(batch))

    @staticmethod
    def frozen_losses(params: Params, batch: Batch) -> Tensor:
        """Zero for each data point: no parameters chose the data, so `lsf` has nothing to credit."""
        return torch.zeros_like(SupervisedTaskBatch.objective(batch))

    @staticmethod
    def objective(batch: Batch) -> Tensor:
        """Zero for each data point: no parameters chose the data, so `e_maml` has nothing to credit."""
        leaves = list(batch.values())
        dtype = next((leaf.dtype for leaf in leaves if leaf.is_floating_point()), torch.get_default_dtype())
        return torch.zeros(_points(leaves, 0), dtype=dtype, device=leaves[0].device)

    def cost(self, batch: Batch) -> Mapping[str, int]:
        """Samples: the data points of all tasks."""
        leaves = list(batch.values())
        return {"samples": len(leaves[0]) * _points(leaves, 1)}


class FiniteSumTaskBatch(SupervisedTaskBatch):
    """Tasks with fixed data: inner and Hessian draws come from the support set, outer draws from the query set.

    Args:
        loss: the loss of one task, `(params, batch) -> scalar`: a mean over the data points.
        support: stacked data of the inner loss, leaves `[T, n, ...]`.
        query: stacked data of the outer loss; `None` uses the support set, as the papers' f_i.
        score: the number to plot, for one task; default: minus the loss.
        batch_sizes: points of a draw, without replacement; draws are independent of each other.
        generator: draws the minibatches.

    Raises:
        ValueError: for leaves with different numbers of tasks or points, batch sizes larger than the sets, and
            minibatches without a generator.

    Example:
        >>> tasks = FiniteSumTaskBatch(lambda w, b: (w["x"] - b["c"]) ** 2, {"c": torch.tensor([0.0, 1.0])})
        >>> tasks.num_tasks, tasks.draw({}, "inner")
        (2, {'c': tensor([0., 1.])})
    """

    def __init__(
        self,
        loss: Loss,
        support: Batch,
        query: Batch | None = None,
        score: Loss | None = None,
        *,
        batch_sizes: BatchSizes = BatchSizes(),  # noqa: B008 (an immutable value)
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(loss, score)
        query = support if query is None else query
        for name, data in (("support", support), ("query", query)):
            check_tensors(name, data, minimum=0)
        sizes = {len(leaf) for data in (support, query) for leaf in data.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"support and query must have the same number of tasks in every leaf, got {sorted(sizes)}")
        self.num_tasks = sizes.pop()
        self.support, self.query = support, query
        self.batch_sizes, self.generator = batch_sizes, generator
        for role, size in batch_sizes._asdict().items():
            if size is not None:
                _check_batch_size(role, size, self._set(role))
        if generator is None and any(size is not None for size in batch_sizes):
            raise ValueError(f"generator must be a torch.Generator for minibatches {batch_sizes}, got None")

    def draw(self, params: Params, role: Role) -> Batch:
        """All of the query set (`outer`) or of the support set, or a random subset for each task."""
        data, size = self._set(role), getattr(self.batch_sizes, role)
        return data if size is None else self._subset(data, size)

    def shard(self, first: int, last: int) -> TaskSlice:
        """The tasks `first` ... `last` - 1; minibatches are drawn for all tasks, so sharding changes none."""
        return TaskSlice(self, first, last)

    def subset(self, rows: Tensor | None, generator: torch.Generator | None = None) -> "FiniteSumTaskBatch":
        """The tasks with these numbers (`None`: all), with a separate generator for minibatches."""
        support = _take(self.support, rows)
        query = support if self.query is self.support else _take(self.query, rows)
        return FiniteSumTaskBatch(
            self.loss, support, query, self.score, batch_sizes=self.batch_sizes, generator=generator
        )

    def _set(self, role: str) -> Batch:
        return self.query if role == "outer" else self.support

    def _subset(self, data: Batch, size: int) -> Batch:
        assert self.generator is not None
        tasks, points = next(iter(data.values())).shape[:2]
        order = torch.rand(tasks, points, generator=self.generator, device=self.generator.device)
        chosen = order.argsort(1)[:, :size]  # [T, size]: a random subset of each task's points
        return {key: leaf[torch.arange(tasks, device=leaf.device)[:, None], chosen] for key, leaf in data.items()}


class Sampler(Protocol):
    """A function that draws fresh data for all tasks."""

    def __call__(self, role: Role, generator: torch.Generator) -> Batch:
        """Stacked data of one draw, leaves `[T, n, ...]`."""


class ResamplingTaskBatch(SupervisedTaskBatch):
    """Tasks that are distributions of data points: every draw is fresh, as in reinforcement learning.

    Args:
        loss: as of `FiniteSumTaskBatch`, like `score`.
        num_tasks: T.
        sampler: draws the data of all tasks.
        generator: passed to `sampler`.
    """

    def __init__(
        self, loss: Loss, num_tasks: int, sampler: Sampler, generator: torch.Generator, score: Loss | None = None
    ) -> None:
        super().__init__(loss, score)
        self.num_tasks = check_int("num_tasks", num_tasks)
        self._sampler, self._generator = sampler, generator

    def draw(self, params: Params, role: Role) -> Batch:
        """Fresh data for any role."""
        return self._sampler(role, self._generator)

    def shard(self, first: int, last: int) -> TaskSlice:
        """The tasks `first` ... `last` - 1; data are drawn for all tasks, so sharding changes none."""
        return TaskSlice(self, first, last)


class FiniteSumSource:
    """Draws tasks from a fixed set without replacement; all of them come in order.

    Args:
        tasks: all tasks; where they use minibatches, sampled tasks have a generator seeded by `sample`'s `rng`.
        params: where training starts.
        score_name: what the tasks' score is called in logs.

    Example:
        >>> tasks = FiniteSumTaskBatch(lambda w, b: (w["x"] - b["c"]) ** 2, {"c": torch.arange(5.0)})
        >>> source = FiniteSumSource(tasks, {"x": torch.tensor(0.0)})
        >>> source.sample(2, np.random.default_rng(0)).num_tasks
        2
    """

    def __init__(self, tasks: FiniteSumTaskBatch, params: Params, score_name: str = "minus_loss") -> None:
        check_has("tasks", tasks, ("subset", "num_tasks"), "the FiniteSumTaskBatch to draw from")
        check_tensors("params", params)
        self.tasks = tasks
        self.score_name = score_name
        self._params = params

    def initial_params(self) -> Params:
        """A copy of the parameters given at construction."""
        return detach(self._params)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> FiniteSumTaskBatch:
        """`num_tasks` of the tasks.

        Raises:
            ValueError: when the set has fewer tasks.
        """
        check_type("rng", rng, np.random.Generator, "a numpy.random.Generator")
        total = self.tasks.num_tasks
        if check_int("num_tasks", num_tasks) > total:
            raise ValueError(f"num_tasks must be at most {total}, the size of the fixed set, got {num_tasks}")
        rows = None if num_tasks == total else torch.from_numpy(rng.choice(total, num_tasks, replace=False))
        generator = None if self.tasks.generator is None else torch_generator(rng, self.tasks.generator.device)
        return self.tasks if rows is None and generator is None else self.tasks.subset(rows, generator)


def _minus(loss: Loss) -> Loss:
    """Minus the loss, as a score."""
    checked = one_number("loss", loss)
    return lambda params, batch: -checked(params, batch)


def _points(leaves: list[Tensor], dim: int) -> int:
    """The number of data points of a task: the size of `dim` in the first leaf that has it."""
    return next((leaf.shape[dim] for leaf in leaves if leaf.ndim > dim), 1)


def _check_batch_size(role: str, size: int, data: Batch) -> None:
    set_name = "query" if role == "outer" else "support"
    points = {leaf.shape[1] if leaf.ndim > 1 else 0 for leaf in data.values()}
    if len(points) != 1:
        raise ValueError(
            f"{set_name} must have leaves [T, n, ...] with one n for minibatches, got n in {sorted(points)}"
        )
    if check_int(f"batch_sizes.{role}", size) > min(points):
        limit = f"{min(points)}, the size of the {set_name} set"
        raise ValueError(f"batch_sizes.{role} must be at most {limit}, got {size}")


def _take(data: Batch, rows: Tensor | None) -> Batch:
    return data if rows is None else {key: leaf[rows.to(leaf.device)] for key, leaf in data.items()}
