"""The trust region of MAML's experiments (Finn, Abbeel, Levine, 2017; Schulman et al., 2015): a natural gradient step.

    x   ~ (A + damping I)^-1 G,    A = mean_i J_i^T F_i J_i             by conjugate gradients
    w' = w - factor^k sqrt(2 max_kl / x^T (A + damping I) x) x,    k = 0, 1, ...

G is the mean meta-gradient. A measures how far the *adapted* policies move (see `metarl.step.replay`), so the
full step, k = 0, has a mean divergence KL(pi_old || pi_new) of about `max_kl`. The first k is taken whose outer loss is
smaller than that of w, and whose mean divergence is at most `max_kl`. Both are computed on the draws of the
meta-gradient, adaptation included. If no k will do, w stays as it is.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from metarl import tree
from metarl.derivatives import as_policies
from metarl.errors import check_choice, check_int, check_real
from metarl.outer.registry import Method
from metarl.state_dict import check_count, check_keys
from metarl.step.optimizer import Stepped, Update
from metarl.step.replay import Measured, Point, Replay
from metarl.types import ChecksSecondDerivatives, HasEpisodes, HasSurrogate, Params, TaskBatch, TaskSource
from metarl.wrappers import RecordDraws

Jacobian: TypeAlias = Literal["exact", "identity"]
"""Whether the derivative of adaptation has the Hessians of the inner steps, or counts them as zero."""


class Solution(NamedTuple):
    """The result of conjugate gradients."""

    x: Params
    curvature: float  # x^T A x
    residual: float  # |b - A x| / |b|
    iterations: int


def conjugate_gradients(multiply: Callable[[Params], Params], b: Params, iterations: int, tolerance: float) -> Solution:
    """Solve `A x = b` for one vector, from zero, with the symmetric positive definite A that `multiply` applies.

    It ends after `iterations`, as soon as the residual is at most `tolerance` |b|, or where rounding makes the
    curvature along the next direction zero or negative.

    Example:
        >>> found = conjugate_gradients(lambda v: {"x": 4 * v["x"]}, {"x": torch.tensor([2.0])}, 10, 1e-6)
        >>> found.x["x"], found.curvature, found.iterations
        (tensor([0.5000]), 1.0, 1)
    """
    x, r, p = tree.tree_map(torch.zeros_like, b), b, b
    size = rr = float(tree.dot(b, b))
    done = 0
    while done < iterations and rr > tolerance**2 * size:
        ap = multiply(p)
        curvature = float(tree.dot(p, ap))
        if not curvature > 0:
            break
        # to the minimum along p
        x, r = tree.add_scaled(x, rr / curvature, p), tree.add_scaled(r, -rr / curvature, ap)
        # the next direction, conjugate to all before
        rr, before = float(tree.dot(r, r)), rr
        p = tree.add_scaled(r, rr / before, p)
        done += 1
    # A x = b - r
    return Solution(x, float(tree.dot(x, tree.subtract(b, r))), math.sqrt(rr / size) if size else 0.0, done)


class TrustRegionStep:
    """A natural-gradient step of bounded divergence between adapted policies, with a line search.

    It takes every update whose meta-gradient is that of the loss after adaptation (`Method.follows_adapted_loss`), on
    tasks with policies; for `multitask` that is the loss at w. There is no learning rate. It logs `kl` (mean divergence
    of the step taken, 0 if none), `kl_full_step`, `cg_residual` (relative), `cg_iterations`, `backtracks`, `accepted`
    (1 or 0), and `expected_improvement` (to first order) and `improvement` of the outer loss.

    Args:
        params: the initial parameters; not used.
        method: the update and the inner loop that the learner trains with.
        max_kl: the largest mean divergence of a step, in nats.
        cg_iterations: conjugate gradient iterations, at most.
        cg_tolerance: the relative residual at which they end; 0: never earlier.
        damping: added to the diagonal of A, in its units: nats for the square of a parameter's change, doubled.
        backtrack_factor: the factor of each shorter step, below 1.
        backtracks: the number of steps to try, at most.
        jacobian: `exact` or `identity`; default: `exact` if the update takes second derivatives.
        every: k; A takes the mean over one episode in k, and over the next ones at the next step; 1: over all.

    Raises:
        ValueError: for numbers that cannot work, and for a method whose meta-gradient is that of another loss.

    Example:
        >>> from metarl import MetaLearner, make_method
        >>> from metarl.agents import make_policy
        >>> from metarl.envs import Navigation
        >>> from metarl.rl import ReinforcementLearning
        >>> tasks, method = Navigation(horizon=10), make_method("maml")
        >>> source = ReinforcementLearning(tasks, make_policy(tasks.observation_space, tasks.action_space), episodes=4)
        >>> step = TrustRegionStep(method.initial_params(source), method, max_kl=0.02)
        >>> MetaLearner.from_parts(source, method, step, meta_batch_size=2).learn(1).iterations
        1
    """

    def __init__(
        self,
        params: Params,
        method: Method,
        *,
        max_kl: float = 0.01,
        cg_iterations: int = 10,
        cg_tolerance: float = 0.1,
        damping: float = 1e-5,
        backtrack_factor: float = 0.8,
        backtracks: int = 15,
        jacobian: Jacobian | None = None,
        every: int = 1,
    ) -> None:
        if not method.follows_adapted_loss:
            name = "this one" if method.recipe is None else method.recipe.name
            raise ValueError(
                "trust_region needs an update whose meta-gradient is that of the loss after adaptation;"
                f" {name} follows another one: use an optimiser, such as adam"
            )
        self.max_kl = check_real("max_kl", max_kl)
        self.cg_iterations = check_int("cg_iterations", cg_iterations)
        self.cg_tolerance = check_real("cg_tolerance", cg_tolerance, high=1.0, open_low=False)
        self.damping = check_real("damping", damping, open_low=False)
        self.backtrack_factor = check_real("backtrack_factor", backtrack_factor, high=1.0)
        self.backtracks = check_int("backtracks", backtracks)
        self.jacobian = None if jacobian is None else check_choice("jacobian", jacobian, ("exact", "identity"))
        self.every = check_int("every", every)
        self.steps = 0
        self.method = method
        self._inner = method.inner_in_training
        second_order = method.needs_hessian or method.differentiates_twice
        self._first_order = self.jacobian == "identity" or (self.jacobian is None and not second_order)

    def config(self) -> dict[str, Any]:
        """The settings that make the same step again: `TrustRegionStep(params, method, **config)`."""
        names = ("max_kl", "cg_iterations", "cg_tolerance", "damping", "backtrack_factor", "backtracks", "jacobian")
        return {name: getattr(self, name) for name in (*names, "every")}

    def check_source(self, source: TaskSource) -> None:
        """Check that the source's tasks have policies that can be differentiated twice, and enough episodes.

        Raises:
            ValueError: otherwise.
        """
        as_policies(source.sample(1, np.random.default_rng(0)))
        if isinstance(source, HasSurrogate) and source.surrogate == "reinforce":
            raise ValueError(
                "surrogate must be one with likelihood ratios for trust_region, such as 'ratio', got 'reinforce': its"
                " value at other parameters says nothing about the return"
            )
        if isinstance(source, ChecksSecondDerivatives):
            source.check_second_derivatives()
        if isinstance(source, HasEpisodes) and self.every > source.episodes:
            raise ValueError(f"every must be at most {source.episodes}, the number of episodes, got {self.every}")

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        """Take the meta-gradient at `params`, find the direction, and search along it."""
        recorded = RecordDraws(tasks)
        meta_grad = update(params, recorded)
        replay = Replay(tasks, recorded.draws, self._inner)
        old = replay.at(params)

        # the natural gradient
        product = old.fisher(self._first_order, slice(self.steps % self.every, None, self.every))
        found = conjugate_gradients(
            lambda v: tree.add_scaled(product(v), self.damping, v),
            meta_grad.grads,
            self.cg_iterations,
            self.cg_tolerance,
        )
        self.steps += 1
        info = {"cg_residual": found.residual, "cg_iterations": float(found.iterations)}

        # its length, and the line search
        length = self._length(found.curvature)
        slope = length * float(tree.dot(meta_grad.grads, found.x))
        taken, searched = self._search(params, tree.tree_map(lambda leaf: length * leaf, found.x), replay, old, slope)
        return Stepped(taken, meta_grad, {**info, **searched})

    def _length(self, curvature: float) -> float:
        """The factor of x at which the mean divergence is `max_kl`, to second order; 0 where x is."""
        return math.sqrt(2 * self.max_kl / curvature) if curvature > 0 else 0.0

    def _search(
        self, params: Params, step: Params, replay: Replay, old: Point, slope: float
    ) -> tuple[Params, Mapping[str, float]]:
        """The first of the shorter and shorter steps that is good enough, or `params`; and values for the log."""
        here = old.measure(old)
        full = math.nan
        for k in range(self.backtracks):
            scale = self.backtrack_factor**k
            there = tree.add_scaled(params, -scale, step)
            found = replay.at(there).measure(old)
            full = found.kl if k == 0 else full
            if self._is_good(here, found):
                return there, self._describe(found.kl, full, k, True, scale * slope, here.loss - found.loss)
        return params, self._describe(0.0, full, self.backtracks, False, 0.0, 0.0)

    def _is_good(self, before: Measured, after: Measured) -> bool:
        return after.loss < before.loss and after.kl <= self.max_kl  # false for NaN

    @staticmethod
    def _describe(
        kl: float, full: float, backtracks: int, accepted: bool, expected: float, found: float
    ) -> Mapping[str, float]:
        return {
            "kl": kl,
            "kl_full_step": full,
            "backtracks": float(backtracks),
            "accepted": float(accepted),
            "expected_improvement": expected,
            "improvement": found,
        }

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, which chooses the episodes of A."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            StateError: when it is not one.
        """
        checked = check_keys(state, {"steps": 0}, ("outer_step",))
        self.steps = check_count(checked["steps"], ("outer_step", "steps"))
