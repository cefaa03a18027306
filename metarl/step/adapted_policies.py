"""The policies after adaptation as functions of w, on recorded draws: their loss, divergence and Fisher matrix.

    A v = mean_i J_i^T F_i J_i v,    J_i = d w_N,i / d w

F_i is the Fisher matrix of task i's policy at w_N, the mean over the states of D_o: the Hessian of the divergence
KL(pi_old || pi_new) of adapted policies. So v^T A v / 2 is the mean divergence after a small step v of w. J_i follows
the steps of adaptation, with the same D_h as the update. The first-order variant counts all Hessians in J_i as zero.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metarl import tree
from metarl.derivatives import divergences, fixed_fishers, fixed_hessians, losses
from metarl.errors import NonFiniteError
from metarl.inner import AdaptationPath, adaptation_path
from metarl.learned_rules import hide_meta, visible
from metarl.outer.pull_back import pull_back, push_forward
from metarl.types import Batch, Inner, Params, TaskBatch
from metarl.wrappers import RecordedDraw, ReplayDraws, gather


class Measured(NamedTuple):
    """The means over all tasks of all processes at some parameters; NaN after an overflow."""

    loss: float  # the outer loss after adaptation
    kl: float  # KL(pi_old || pi_new) of the adapted policies, in nats


class AdaptedPolicies:
    """The policies after adaptation from any w, on the draws that an update made at one w, the old one.

    Adaptation is computed again from the recorded inner batches, which correct for the changed policy by likelihood
    ratios. Nothing random is used.

    Args:
        params: the old w.
        tasks: those of the update.
        draws: everything that the update drew.
        inner: the inner loop.

    Raises:
        ValueError: unless the update drew one inner batch for each inner step, and an outer batch.
    """

    def __init__(self, params: Params, tasks: TaskBatch, draws: Sequence[RecordedDraw], inner: Inner) -> None:
        by_role = {role: [draw for draw in draws if draw.role == role] for role in ("inner", "outer", "hessian")}
        found = {role: len(of_role) for role, of_role in by_role.items()}
        if found["inner"] != inner.steps or not found["outer"] or found["hessian"] not in (0, inner.steps):
            wanted = f"an inner batch for each of its {inner.steps} steps, an outer one, and Hessian's for each or none"
            raise ValueError(f"the update must draw {wanted}, got {found}")
        self._tasks, self._inner = hide_meta(tasks, params), inner
        self._draws = by_role["inner"]
        self._outer = by_role["outer"][-1].batch  # at w_N
        # the pull-back drew from the last step to the first
        hessian = [draw.batch for draw in reversed(by_role["hessian"])]
        self._hessian = hessian or [draw.batch for draw in self._draws]
        self._old = self.path(params)

    def path(self, params: Params) -> AdaptationPath:
        """Adaptation from `params`."""
        return adaptation_path(params, ReplayDraws(self._tasks, self._draws), self._inner, batches=False)

    def measure(self, params: Params) -> Measured:
        """Loss and divergence after adaptation from `params`."""
        with torch.no_grad():
            try:
                end = self.path(params).params[-1]
                own = [losses(self._tasks, end, self._outer), self._divergences(visible(end))]
                rows = torch.stack(own, 1).double().cpu()  # [t, 2]
            except NonFiniteError:  # in this process: the means tell the others
                rows = torch.full((self._tasks.num_tasks, 2), torch.nan, dtype=torch.float64)
        return Measured(*self._mean_rows(rows).tolist())

    def fisher(self, first_order: bool, episodes: slice = slice(None)) -> Callable[[Params], Params]:
        """The product with A, for many vectors.

        Args:
            first_order: whether Hessians count as zero in J.
            episodes: the episodes that F and the Hessians take their means over.
        """
        tasks, inner, some = self._tasks, self._inner, [_take(batch, episodes) for batch in self._hessian]
        path = self._old._replace(batches=some)
        fishers = fixed_fishers(tasks, visible(path.params[-1]), _take(self._outer, episodes))
        hessians = {}
        if not first_order:
            hessians = {id(w): fixed_hessians(tasks, w, batch) for w, batch in zip(path.params, some, strict=False)}

        def multiply(tasks: TaskBatch, w: Params, batch: Batch, vectors: Params) -> Params:
            return hessians[id(w)](vectors)

        through = None if first_order else multiply

        def product(vector: Params) -> Params:
            tangents = push_forward(tasks, path, inner, tree.broadcast(vector, tasks.num_tasks), through)
            products = fishers(visible(tangents))
            # the adapted meta-parameters do not change a policy
            cotangents = {k: products[k] if k in products else torch.zeros_like(t) for k, t in tangents.items()}
            pulled = pull_back(tasks, path, inner, cotangents, through, "reuse")
            return tree.mean(pulled, self._mean_rows)

        return product

    def _divergences(self, new: Params) -> Tensor:
        return divergences(self._tasks, visible(self._old.params[-1]), new, self._outer)

    def _mean_rows(self, own: Tensor) -> Tensor:
        """The mean over the tasks of all processes, `[...]`, from `[t, ...]`."""
        return tree.mean_rows(gather(self._tasks, own))


def _take(batch: Batch, episodes: slice) -> Batch:
    """Some of every task's episodes."""
    return batch if episodes == slice(None) else {key: leaf[:, episodes] for key, leaf in batch.items()}
