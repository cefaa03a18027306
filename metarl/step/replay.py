"""The draws of one outer step, used again at other parameters: adapting there takes gradients, but no samples.

    w_0 = w,    w_{j+1} = rule(w_j, grad f(w_j; D_j)),    D_j drawn at the old w_j

The ratios of the loss `f` are those to the policies that acted.
"""

import functools

import torch
from torch import Tensor

from metarl.derivatives import divergence_gradients, divergences, gradients, hessian_vector_products
from metarl.inner import AdaptationPath, adaptation_path, has_adjoint, inner_step, rules
from metarl.learned_rules import hide_meta, visible
from metarl.outer.hf_maml import central_difference, relative_length
from metarl.outer.pull_back import HessianData, Multiply, pull_back
from metarl.outer.registry import Method
from metarl.tree import broadcast
from metarl.types import Inner, Params, TaskBatch
from metarl.wrappers import Derivative, RecordDraws, RecordedDraw, ReplayDraws


class RecordUpdate(RecordDraws):
    """Keeps the draws of an update, and whether it took exact Hessian-vector products."""

    has_products = False

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        self.has_products = self.has_products or kind == "hessian_vector_products"


class Replay:
    """The draws of one update by their use, and how the update multiplied by the Hessian of an inner step.

    Attributes:
        tasks: the tasks.
        inner: the rule, and the number of inner steps that the update took, N.
        steps: the draws D_0 ... D_{N-1}.
        hessian: the draws D_h of steps N-1 ... 0; none if the update reused the D_j.
        end: the draw D_o at w_N.
    """

    def __init__(self, tasks: TaskBatch, recording: RecordUpdate, method: Method) -> None:
        self.tasks = tasks
        self.steps, self.hessian, outer = (
            [draw for draw in recording.draws if draw.role == role] for role in ("inner", "hessian", "outer")
        )
        self.inner = method.inner._replace(steps=len(self.steps))
        if not outer:
            raise ValueError("the update must draw an outer batch, at the adapted parameters, got none")
        self.end: RecordedDraw = outer[-1]
        self.multiply = _multiply(method, recording.has_products)

    def at(self, params: Params) -> "Point":
        """The same adaptation from other parameters."""
        return Point(self, params)


class Point:
    """Adaptation from `params` (not stacked) on replayed draws; computed as far as it is needed."""

    def __init__(self, replay: Replay, params: Params) -> None:
        self._replay, self._params = replay, params
        self.steps = len(replay.steps)

    @functools.cached_property
    def path(self) -> AdaptationPath:
        """w_0 ... w_{N-1}: everything before the last inner step."""
        inner, steps = self._replay.inner, self._replay.steps[:-1]
        tasks = hide_meta(ReplayDraws(self._replay.tasks, steps), self._params)
        return adaptation_path(self._params, tasks, Inner(inner.rule, len(steps)), grads=not has_adjoint(inner.rule))

    @functools.cached_property
    def adapted(self) -> Params:
        """w_N, stacked, as the tasks see it."""
        inner, steps = self._replay.inner, self._replay.steps
        w = self.path.params[-1]
        if not steps:
            return visible(w)
        grads = gradients(hide_meta(self._replay.tasks, self._params), w, steps[-1].batch)
        return visible(inner_step(rules(inner)[-1], w, grads, broadcast(self._params, self._replay.tasks.num_tasks)))

    def kl_before(self) -> Tensor:
        """The mean over j < N of KL(pi_{w_j, old} || pi_{w_j}) over the states of D_j, `[T]`; zero if N is zero."""
        tasks, steps = self._replay.tasks, self._replay.steps
        points = zip(steps, self.path.params, strict=False)  # without a step there is a point
        kls = [divergences(tasks, draw.params, visible(w), draw.batch) for draw, w in points]
        return torch.stack(kls).mean(0) if kls else torch.zeros(tasks.num_tasks)

    def kl_after(self) -> Tensor:
        """KL(pi_{w_N, old} || pi_{w_N}) over the states of D_o, `[T]`."""
        end = self._replay.end
        return divergences(self._replay.tasks, end.params, self.adapted, end.batch)

    def kl_gradient(self) -> Params:
        """The gradient of `kl_before` with respect to `params`, `[T, ...]`: at each w_j, pulled back to w_0."""
        replay, path = self._replay, self.path
        slopes = [
            self._share(divergence_gradients(replay.tasks, draw.params, visible(w), draw.batch))
            for draw, w in zip(replay.steps, path.params, strict=True)
        ]
        # the last point is w_{N-1}, so the step from there, whose Hessian comes first, has no part in it
        tasks = hide_meta(ReplayDraws(replay.tasks, replay.hessian[1:]), self._params)
        data: HessianData = "fresh" if replay.hessian else "reuse"
        return pull_back(tasks, path, replay.inner, slopes[-1], replay.multiply, data, dict(enumerate(slopes[:-1])))

    def _share(self, slope: Params) -> Params:
        """The share of one inner step in the mean: its gradient over N, and zero for meta-parameters."""
        zeros = broadcast({k: torch.zeros_like(leaf) for k, leaf in self._params.items()}, self._replay.tasks.num_tasks)
        return {k: slope[k] / self.steps if k in slope else zero for k, zero in zeros.items()}


def _multiply(method: Method, has_products: bool) -> Multiply | None:
    """How the update multiplies by Hessians; MAML++ may begin with none."""
    if has_products:
        return hessian_vector_products
    if method.needs_hessian and not method.differentiates_twice:
        return central_difference(relative_length)
    return None
