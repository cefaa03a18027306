"""The finite-sum oracle: fixed data sets for every task, a support set S_i inside and a query set T_i outside."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from metarl.errors import check_int
from metarl.tree import detached
from metarl.types import Batch, Loss, Params, Role


class FiniteSumTasks:
    """Tasks whose data never changes: every inner or Hessian draw is the support set, every outer one the query set.

    Args:
        loss: the loss of one task, `(params, batch) -> scalar`.
        support: stacked data of the inner loss, leaves `[T, n, ...]`.
        query: stacked data of the outer loss; `None` takes the support set, as the papers' f_i.
        score: what people plot, for one task; `None` takes minus the loss.
    """

    def __init__(self, loss: Loss, support: Batch, query: Batch | None = None, score: Loss | None = None) -> None:
        query = support if query is None else query
        sizes = {len(leaf) for data in (support, query) for leaf in data.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"support and query must have the same number of tasks in every leaf, got {sorted(sizes)}")
        self.num_tasks = sizes.pop()
        self.loss = loss
        self.support, self.query = support, query
        self._score = score

    def draw(self, params: Params, role: Role) -> Batch:
        """The query set for `outer`, the support set otherwise."""
        return self.query if role == "outer" else self.support

    def score(self, params: Params, batch: Batch) -> Tensor:
        """The score given at construction, or minus the loss."""
        return -self.loss(params, batch) if self._score is None else self._score(params, batch)

    def cost(self, batch: Batch) -> Mapping[str, int]:
        """Samples: the data points of all tasks."""
        leaf = next(iter(batch.values()))
        return {"samples": leaf.shape[0] * (leaf.shape[1] if leaf.ndim > 1 else 1)}


class FiniteSumSource:
    """Draws tasks of a fixed set without replacement; asked for all of them, it gives them in order.

    Args:
        tasks: all tasks.
        params: where training starts.
        score_name: what the tasks' score is called in logs.
    """

    def __init__(self, tasks: FiniteSumTasks, params: Params, score_name: str = "minus_loss") -> None:
        self.tasks = tasks
        self.score_name = score_name
        self._params = params

    def initial_params(self) -> Params:
        """A copy of the parameters given at construction."""
        return detached(self._params)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> FiniteSumTasks:
        """`num_tasks` of the tasks.

        Raises:
            ValueError: when there are not as many.
        """
        total = self.tasks.num_tasks
        if check_int("num_tasks", num_tasks) > total:
            raise ValueError(f"num_tasks must be at most {total}, the size of the fixed set, got {num_tasks}")
        if num_tasks == total:
            return self.tasks
        rows = torch.from_numpy(rng.choice(total, num_tasks, replace=False))
        support, query = (_rows(data, rows) for data in (self.tasks.support, self.tasks.query))
        return FiniteSumTasks(self.tasks.loss, support, query, self.tasks._score)


def _rows(data: Batch, rows: Tensor) -> Batch:
    return {key: leaf[rows.to(leaf.device)] for key, leaf in data.items()}
