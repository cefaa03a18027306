"""Diagnostics of an iteration, from the draws and gradients that training takes anyway.

They draw nothing and change nothing: with and without them training computes the same numbers. A few episodes of the
first draw and of the last outer draw are kept for entropies and divergences, at most about `STATES` states.

docs/scalars.md explains every value.
"""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from metarl.processes import Share, share_of
from metarl.types import Batch, DescribesPolicies, Params, Role, TaskBatch
from metarl.wrappers import Derivative, TaskWrapper, unwrap

STATES = 2048
"""About how many states, in all tasks together, are looked at for entropies and divergences."""

WHEN = ("before", "after")
RESIDUAL, TOTAL = "residual_variance", "return_variance"
"""What a draw says about its baseline; together they make the explained variance."""
SUCCESS, REPORTED = "success", "success_reported"
"""A share of episodes, and 1 if the environments reported it, else 0."""


class Kept(NamedTuple):
    """What is kept of a draw: its parameters and a few of its episodes."""

    params: Params
    excerpt: Batch


class Diagnose(TaskWrapper):
    """Notes losses, gradient norms, statistics of draws and the time they take, for `values`.

    *Before* is the first draw of the iteration, *after* the last draw with the role `outer`.
    """

    def __init__(self, tasks: TaskBatch) -> None:
        super().__init__(tasks)
        self.seconds = 0.0  # in draws
        self._awaited: Role | None = None  # the role of a draw whose gradient is still to come
        self._columns: dict[str, Tensor] = {}  # [t] each
        self._kept: dict[str, Kept] = {}

    def draw(self, params: Params, role: Role) -> Batch:
        start = time.perf_counter()
        batch = super().draw(params, role)
        self.seconds += time.perf_counter() - start
        self._awaited = None if role == "inner" and "train/inner_loss" in self._columns else role
        if not self._kept:
            self._keep("before", params, batch)
        elif role == "outer":
            self._keep("after", params, batch)
        return batch

    def _keep(self, when: str, params: Params, batch: Batch) -> None:
        source = unwrap(self.tasks)
        self._kept[when] = Kept({}, {})
        if isinstance(source, DescribesPolicies):
            self._columns.update({f"{tag}_{when}": value for tag, value in source.statistics(batch).items()})
            # the share of these tasks, so that the episodes do not depend on the number of processes
            states = STATES * self.num_tasks // share_of(self.tasks).num_tasks
            self._kept[when] = Kept(params, source.excerpt(batch, states))

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        if self._awaited in ("inner", "outer") and kind == "gradients" and losses is not None:
            self._columns[f"train/{self._awaited}_loss"] = losses
            self._columns[f"train/{self._awaited}_grad_norm"] = stacked_norms(result)
            self._awaited = None

    @torch.no_grad()
    def values(self, share: Share) -> dict[str, float]:
        """The means over the tasks of all processes, by tag."""
        source, columns = unwrap(self.tasks), dict(self._columns)
        if isinstance(source, DescribesPolicies) and len(self._kept) == len(WHEN):
            (old, before), (new, after) = (self._kept[when] for when in WHEN)
            columns.update(vmap(source.describe)(old, new, before, after))
        if not columns:
            return {}
        # in double precision on the CPU: not every device has it
        table = torch.stack([column.detach().cpu().double() for column in columns.values()], 1)  # [t, columns]
        # all processes have the same columns
        return explain_variances(drop_unreported(dict(zip(columns, share.mean(table).tolist(), strict=True))))


def drop_unreported(values: Mapping[str, float]) -> dict[str, float]:
    """`values` without the successes that no environment of any process reported."""
    found = dict(values)
    for when in WHEN:
        if not found.pop(f"rollout/{REPORTED}_{when}", 0.0):
            found.pop(f"rollout/{SUCCESS}_{when}", None)
    return found


def explain_variances(values: Mapping[str, float]) -> dict[str, float]:
    """`values` with `1 - residual / total` in place of mean variances; left out where returns do not vary."""
    found = dict(values)
    for when in WHEN:
        residual, total = (found.pop(f"baseline/{name}_{when}", 0.0) for name in (RESIDUAL, TOTAL))
        if total > 0 and math.isfinite(residual / total):
            found[f"baseline/explained_variance_{when}"] = 1 - residual / total
    return found


def stacked_norms(stacked: Params) -> Tensor:
    """The Euclidean norm of every task's tree, `[t]`; no rounding depends on the other tasks."""
    total = torch.zeros(())
    for leaf in stacked.values():
        for_each_task = torch.stack([row.square().sum() for row in leaf.detach()])
        total = total.to(for_each_task) + for_each_task
    return total.sqrt()
