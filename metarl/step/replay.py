"""The draws of one outer step, used again at other parameters: adapting there takes gradients, but no samples.

    w_0 = w,    w_{j+1} = rule(w_j, grad f(w_j; D_j)),    D_j drawn at the old w_j

The ratios of the loss `f` are those to the policies that acted. Two outer steps are made of this: `ProximalStep`, which
bounds the divergence of the policies before adaptation, and `TrustRegionStep`, which bounds that of the adapted ones:

    A v = mean_i J_i^T F_i J_i v,    J_i = d w_N,i / d w

F_i is the Fisher matrix of task i's policy at w_N, the mean over the states of D_o: the Hessian of the divergence
KL(pi_old || pi_new) of adapted policies. So v^T A v / 2 is the mean divergence after a small step v of w. J_i follows
the steps of adaptation, with the same D_h as the update. The first-order variant counts all Hessians in J_i as zero.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from metarl import tree
from metarl.derivatives import (
    as_policies,
    divergence_gradients,
    divergences,
    fixed_fishers,
    fixed_hessians,
    over_tasks,
)
from metarl.errors import NonFiniteError
from metarl.inner import AdaptationPath, adaptation_path, extend_path, has_adjoint, rules
from metarl.learned_rules import hide_meta, visible
from metarl.outer.pull_back import Multiply, pull_back, push_forward
from metarl.types import Batch, Inner, Loss, Params, TaskBatch
from metarl.wrappers import RecordedDraw, ReplayDraws, gather


class Measured(NamedTuple):
    """The means over all tasks of all processes at some parameters; NaN after an overflow."""

    loss: float  # the outer loss after adaptation
    kl: float  # KL(pi_old || pi_new) of the adapted policies, in nats


class Replay:
    """The draws of one update by their use. Nothing random is used any more.

    Attributes:
        tasks: the tasks of the update.
        inner: the inner loop of the update, N steps.
        steps: the draws D_0 ... D_{N-1}.
        hessian: the batches D_h of steps 0 ... N-1; the batches of `steps` if the update drew no others.
        end: the last outer draw, D_o at w_N.

    Raises:
        ValueError: unless the update drew one inner batch for each inner step, and an outer batch.
    """

    def __init__(self, tasks: TaskBatch, draws: Sequence[RecordedDraw], inner: Inner) -> None:
        by_role = {role: [draw for draw in draws if draw.role == role] for role in ("inner", "outer", "hessian")}
        found = {role: len(of_role) for role, of_role in by_role.items()}
        if found["inner"] != inner.steps or not found["outer"] or found["hessian"] not in (0, inner.steps):
            wanted = f"an inner batch for each of its {inner.steps} steps, an outer one, and Hessian's for each or none"
            raise ValueError(f"the update must draw {wanted}, got {found}")
        self.tasks, self.inner, self.steps, self.end = tasks, inner, by_role["inner"], by_role["outer"][-1]
        # the pull-back drew from the last step to the first
        self.hessian = [draw.batch for draw in by_role["hessian"][::-1] or self.steps]

    def at(self, params: Params) -> "Point":
        """The same adaptation from other parameters."""
        return Point(self, params)


class Point:
    """Adaptation from `params` (not stacked) on replayed draws; computed as far as it is needed, and kept."""

    def __init__(self, replay: Replay, params: Params) -> None:
        self._replay, self._params = replay, params
        self._tasks = hide_meta(replay.tasks, params)
        self._rules = rules(replay.inner)
        self._grads = not has_adjoint(replay.inner.rule)
        self.steps = len(replay.steps)

    @cached_property
    def start(self) -> AdaptationPath:
        """w_0 ... w_{N-1}, everything before the last inner step, with D_h for its batches."""
        inner = self._replay.inner._replace(steps=max(self.steps - 1, 0))
        tasks = ReplayDraws(self._tasks, self._replay.steps[:-1])
        path = adaptation_path(self._params, tasks, inner, batches=False, grads=self._grads)
        return path._replace(batches=self._replay.hessian[:-1])

    @cached_property
    def path(self) -> AdaptationPath:
        """w_0 ... w_N, with D_h for its batches."""
        path = AdaptationPath(list(self.start.params), [], list(self.start.grads))
        tasks = ReplayDraws(self._tasks, self._replay.steps[-1:])
        extend_path(path, tasks, self._rules[-1:], batches=False, grads=self._grads)
        return path._replace(batches=self._replay.hessian)

    @property
    def adapted(self) -> Params:
        """w_N, stacked, as the tasks see it."""
        return visible(self.path.params[-1])

    def measure(self, old: "Point") -> Measured:
        """The outer loss here, and the divergence of the adapted policies from those at `old`."""
        tasks, end = self._replay.tasks, self._replay.end
        function = partial(_loss_and_divergence, tasks.loss, as_policies(tasks).kl)
        with torch.no_grad():
            try:
                found = over_tasks("policies at the end", function, old.adapted, self.adapted, end.batch)
                rows = torch.stack(found, 1).double().cpu()  # [t, 2]
            except NonFiniteError:  # in this process: the means tell the others
                rows = torch.full((tasks.num_tasks, 2), torch.nan, dtype=torch.float64)
        return Measured(*self._mean_rows(rows).tolist())

    def kl_before(self) -> Tensor:
        """The mean over j < N of KL(pi_{w_j, old} || pi_{w_j}) over the states of D_j, `[T]`; zero if N is zero."""
        tasks, steps = self._replay.tasks, self._replay.steps
        points = zip(steps, self.start.params, strict=False)  # without a step there is a point
        kls = [divergences(tasks, draw.params, visible(w), draw.batch) for draw, w in points]
        return torch.stack(kls).mean(0) if kls else torch.zeros(tasks.num_tasks)

    def kl_after(self) -> Tensor:
        """KL(pi_{w_N, old} || pi_{w_N}) over the states of D_o, `[T]`; the old policies drew D_o."""
        end = self._replay.end
        return divergences(self._replay.tasks, end.params, self.adapted, end.batch)

    def kl_gradient(self, multiply: Multiply | None) -> Params:
        """The gradient of `kl_before` with respect to `params`, `[T, ...]`: at each w_j, pulled back to w_0.

        `multiply` is the update's product with Hessians; `None`: they count as zero.
        """
        replay = self._replay
        slopes = [
            self._share(divergence_gradients(replay.tasks, draw.params, visible(w), draw.batch))
            for draw, w in zip(replay.steps, self.start.params, strict=True)
        ]
        # the last point is w_{N-1}, so the step from there has no part in it
        on_the_way = dict(enumerate(slopes[:-1]))
        return pull_back(self._tasks, self.start, replay.inner, slopes[-1], multiply, "reuse", on_the_way)

    def fisher(self, first_order: bool, episodes: slice = slice(None)) -> Callable[[Params], Params]:
        """The product with A, for many vectors.

        Args:
            first_order: whether Hessians count as zero in J.
            episodes: the episodes that F and the Hessians take their means over.
        """
        tasks, inner = self._tasks, self._replay.inner
        path = self.path._replace(batches=[_take(batch, episodes) for batch in self.path.batches])
        fishers = fixed_fishers(tasks, self.adapted, _take(self._replay.end.batch, episodes))
        hessians = {}
        if not first_order:
            points = zip(path.params, path.batches, strict=False)  # w_N has no batch
            hessians = {id(w): fixed_hessians(tasks, w, batch) for w, batch in points}

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

    def _share(self, slope: Params) -> Params:
        """The share of one inner step in the mean: its gradient over N, and zero for meta-parameters."""
        zeros = {k: torch.zeros_like(leaf) for k, leaf in self._params.items()}
        zeros = tree.broadcast(zeros, self._replay.tasks.num_tasks)
        return {k: slope[k] / self.steps if k in slope else zero for k, zero in zeros.items()}

    def _mean_rows(self, own: Tensor) -> Tensor:
        """The mean over the tasks of all processes, `[...]`, from `[t, ...]`."""
        return tree.mean_rows(gather(self._replay.tasks, own))


def _loss_and_divergence(
    loss: Loss, kl: Callable[[Params, Params, Batch], Tensor], old: Params, new: Params, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Of one task; together, so that each policy is evaluated once."""
    return loss(new, batch), kl(old, new, batch)


def _take(batch: Batch, episodes: slice) -> Batch:
    """Some of every task's episodes."""
    return batch if episodes == slice(None) else {key: leaf[:, episodes] for key, leaf in batch.items()}
