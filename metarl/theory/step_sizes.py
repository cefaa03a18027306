"""Step sizes from theory: how large the inner step alpha may be, and how large the outer step beta is.

N inner steps `w - alpha g` (Ji, Yang, Liang, 2022):

    alpha L < 2^{1/(2N)} - 1,    the same as    (1 + alpha L)^{2N} < 2

Then the product of N factors `I - alpha H` cannot grow or shrink geometrically, and the cost of a solution grows
linearly in N, not exponentially. The corollaries use alpha = 1 / (8 N L). This does not apply to steps by the sign, or
to steps that restart from `w`. `alpha_range` is the range of the theorem that belongs to a method.

The outer step follows the smoothness of the meta-objective, which is not bounded but grows with the gradients:

    beta = c / (constant + slope * mean_j |grad f_j(w)|)

Fallah et al. (2020, eq. 1.12): constant 4 L, slope 2 rho alpha, one inner step. Ji et al. (2022): constant
(1 + alpha L)^{2N} L and slope C_L for N steps. `metarl.theory.AdaptiveStep` estimates the mean from its own draws.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch.func import vmap

from metarl import tree
from metarl.derivatives import gradients
from metarl.errors import check_choice, check_int, check_real
from metarl.processes import share_of
from metarl.random import Stream, generator_state, restore_generator, stream_generator
from metarl.state_dict import check_like
from metarl.step.optimizer import Stepped, Update
from metarl.types import Params, TaskBatch, TaskSource
from metarl.wrappers import wrap_like


class TheoryWarning(UserWarning):
    """The convergence theorems do not cover the settings of a run."""


def inner_lr_bound(inner_steps: int) -> float:
    """The upper bound of alpha L for N = `inner_steps`: `2^{1/(2N)} - 1`.

    Example:
        >>> [round(inner_lr_bound(n), 5) for n in (1, 2, 5)]
        [0.41421, 0.18921, 0.07177]
    """
    return math.expm1(math.log(2) / (2 * check_int("inner_steps", inner_steps)))


def recommended_inner_lr(L: float, inner_steps: int) -> float:
    """The inner step size of the N-step theory: `1 / (8 N L)`."""
    return 1 / (8 * check_int("inner_steps", inner_steps) * check_real("L", L))


class AlphaRange(NamedTuple):
    """The inner step sizes that a theorem covers: `0 < alpha L < largest`, or `<=` if it is `closed`."""

    largest: float
    closed: bool

    def covers(self, alpha_l: float) -> bool:
        """Whether alpha L is in the range; up to its rounding error if the range is closed."""
        return alpha_l <= self.largest * (1 + 1e-6) if self.closed else alpha_l < self.largest


ONE_STEP = {"maml": 1.0, "fo_maml": 1 / 10, "hf_maml": 1 / 6}
"""The largest alpha L in Fallah et al.'s theorems, by method."""


def alpha_range(method: str, inner_steps: int) -> AlphaRange | None:
    """The range of alpha L that belongs to a method; `None` if we know no theorem for it.

    | method | alpha L | source |
    | --- | --- | --- |
    | `maml`, `fo_maml`, `hf_maml` with one step | at most 1, 1/10, 1/6 | Fallah et al. (2020) |
    | `multi_step_maml`, and `maml` with several steps | below 2^{1/(2N)} - 1 | Ji et al. (2022) |
    | `fo_maml`, `hf_maml` with several steps | the smaller of both; no theorem covers them | |
    | `moreau` | below 1, where its steps contract | Mishchenko et al. (2023) |

    Example:
        >>> alpha_range("hf_maml", inner_steps=1)
        AlphaRange(largest=0.1666..., closed=True)
        >>> alpha_range("sign_maml", inner_steps=1) is None
        True
    """
    bound = AlphaRange(inner_lr_bound(inner_steps), closed=False)
    if method in ONE_STEP:
        one_step = AlphaRange(ONE_STEP[method], closed=True)
        return one_step if inner_steps == 1 else min(one_step, bound)
    return {"multi_step_maml": bound, "moreau": AlphaRange(1.0, closed=False)}.get(method)


def warn_if_too_large(
    inner_lr: float, L: float, inner_steps: int, method: str = "multi_step_maml", *, stacklevel: int = 2
) -> bool:
    """Give a `TheoryWarning` when alpha L is outside the range that belongs to `method`; returns whether it did.

    `stacklevel` is that of `warnings.warn`.
    """
    alpha_l = check_real("inner_lr", inner_lr) * check_real("L", L, open_low=False)
    needed = alpha_range(method, inner_steps)
    if needed is None or needed.covers(alpha_l):
        return False
    message = f"inner_lr = {inner_lr:.4g} with L = {L:.4g} makes alpha L = {alpha_l:.4g}, but "
    message += _describe(needed, method, inner_steps, L)
    warnings.warn(message, TheoryWarning, stacklevel=stacklevel)
    return True


def _describe(needed: AlphaRange, method: str, inner_steps: int, L: float) -> str:
    """What the theory of a method needs, as the end of a sentence."""
    if needed.closed:
        at_most = f"the theorem for {method} needs at most {needed.largest:.4g}"
        return f"{at_most}: inner_lr = {needed.largest / L:.4g}"
    less = f"theory needs less than {needed.largest:.4g}"
    if method == "moreau":
        return f"for the steps of moreau to contract {less}: inner_lr below {needed.largest / L:.4g}"
    chosen = recommended_inner_lr(L, inner_steps)
    return f"for {inner_steps} inner steps {less} and would choose inner_lr = {chosen:.4g}"


class StepSizeRule(NamedTuple):
    """`beta = c / (constant + slope * mean_norm)`."""

    c: float
    constant: float
    slope: float
    in_range: bool = True  # whether the theorem covers alpha; if not, the rule has given a `TheoryWarning`

    def smoothness(self, mean_norm: float) -> float:
        """The denominator: the smoothness of the meta-objective where the tasks' gradients have this mean norm."""
        return self.constant + self.slope * mean_norm

    def step_size(self, mean_norm: float) -> float:
        """beta."""
        return self.c / self.smoothness(mean_norm)


FALLAH = {"maml": 1 / 12, "fo_maml": 1 / 18, "hf_maml": 1 / 25}
"""c of Fallah et al.'s beta = c / L~(w), by method."""


def fallah_rule(method: str, L: float, rho: float, inner_lr: float) -> StepSizeRule:
    """`L~ = 4 L + 2 rho alpha mean |g|` with c = 1/12 (`maml`), 1/18 (`fo_maml`) or 1/25 (`hf_maml`).

    Args:
        method: the outer update that the step is for.
        L: Lipschitz constant of the tasks' gradients.
        rho: Lipschitz constant of their Hessians; 0 for quadratics.
        inner_lr: alpha; the theorems need at most 1/L, 1/(10 L) and 1/(6 L). Beyond that the rule is only a heuristic,
            and gives a `TheoryWarning`.

    Example:
        >>> rule = fallah_rule("maml", L=0.5, rho=1.0, inner_lr=0.25)
        >>> rule.smoothness(4.0), rule.step_size(4.0) * 12
        (4.0, 0.25)
    """
    c = FALLAH[check_choice("method", method, FALLAH)]
    _check(L, rho, inner_lr)
    outside = warn_if_too_large(inner_lr, L, 1, method, stacklevel=3)
    return StepSizeRule(c, 4 * L, 2 * rho * inner_lr, not outside)


def ji_rule(
    L: float, rho: float, inner_lr: float, inner_steps: int, c_beta: float = 80.0, *, difference: float = 0.0
) -> StepSizeRule:
    """`L^ = (1 + aL)^{2N} L + C_L (mean |g| + b / (1 + aL)^N)` and `beta = 1 / (C_beta L^)`.

    `C_L = [(1 + aL)^{N-1} a rho + (rho / L) (1 + aL)^N ((1 + aL)^{N-1} - 1)] (1 + aL)^N`, N = `inner_steps`

    The theorem needs a L < 2^{1/(2N)} - 1; beyond that you get a `TheoryWarning`. C_L, and 80 for C_beta, are taken
    from secondary sources. L^ is a Lipschitz constant of the meta-gradient (`metarl theory` checks it); at N = 1 and
    a L = 1 it is Fallah et al.'s L(w).

    Args:
        L: Lipschitz constant of the tasks' gradients.
        rho: Lipschitz constant of their Hessians; 0 for quadratics.
        inner_lr: a, the inner step size alpha.
        inner_steps: N.
        c_beta: C_beta.
        difference: b, the mean over tasks of `max_w |grad l_S(w) - grad l_T(w)|` on a finite sum whose support and
            query losses differ. Its term is our own derivation, from |g_T(w_N)| <= (1 + aL)^N |g_S(w)| + b.

    Example:
        >>> ji_rule(L=1.0, rho=1.0, inner_lr=0.125, inner_steps=1).slope  # 1.125 / 8
        0.140625
    """
    _check(L, rho, inner_lr)
    n, growth = check_int("inner_steps", inner_steps), 1 + inner_lr * L
    first = growth ** (n - 1) * inner_lr * rho
    slope = (first + rho / L * growth**n * (growth ** (n - 1) - 1)) * growth**n
    constant = growth ** (2 * n) * L + slope / growth**n * check_real("difference", difference, open_low=False)
    outside = warn_if_too_large(inner_lr, L, n, stacklevel=3)
    return StepSizeRule(1 / check_real("c_beta", c_beta), constant, slope, not outside)


def _check(L: float, rho: float, inner_lr: float) -> None:
    check_real("L", L)
    check_real("rho", rho, open_low=False)
    check_real("inner_lr", inner_lr)


class AdaptiveStep:
    """A step `w - beta G`; a rule computes beta from the gradients of separate tasks.

    Its draws and gradients are counted in the run's counts; several processes share its tasks, too.

    Args:
        rule: `metarl.theory.fallah_rule(...)` or `ji_rule(...)`.
        source: where B' comes from. D_beta is an inner draw of its tasks.
        num_tasks: |B'|.
        seed: of B' and D_beta.

    Example:
        >>> import torch
        >>> from metarl import MetaLearner, make_method
        >>> from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
        >>> from metarl.theory import fallah_rule
        >>> tasks = FiniteSumTaskBatch(lambda w, b: (w["x"] - b["c"]) ** 2 / 2, {"c": torch.tensor([0.0, 1.0])})
        >>> source = FiniteSumSource(tasks, {"x": torch.tensor(2.0)})
        >>> step = AdaptiveStep(fallah_rule("maml", L=1.0, rho=0.0, inner_lr=0.1), source, num_tasks=1)
        >>> MetaLearner.from_parts(source, make_method("maml"), step, meta_batch_size=2).learn(3).iterations
        3
    """

    def __init__(self, rule: StepSizeRule, source: TaskSource, num_tasks: int, seed: int = 0) -> None:
        self.rule = rule
        self.source = source
        self.num_tasks = check_int("num_tasks", num_tasks)
        self._rng = stream_generator(check_int("seed", seed, minimum=0), Stream.OUTER_STEP_SIZE)

    def __call__(self, params: Params, tasks: TaskBatch, update: Update) -> Stepped:
        """Choose beta at `params`, take the meta-gradient there and step; `info` has beta and the denominator."""
        mean_norm = self._mean_gradient_norm(params, tasks)
        beta = self.rule.step_size(mean_norm)
        meta_grad = update(params, tasks)
        stepped = tree.add_scaled(params, -beta, meta_grad.grads)
        return Stepped(stepped, meta_grad, {"outer_lr": beta, "smoothness": self.rule.smoothness(mean_norm)})

    def state_dict(self) -> dict[str, Any]:
        """The rule, |B'|, and the state of its random generator."""
        return {**self._constants(), "num_tasks": self.num_tasks, "rng": generator_state(self._rng)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            ValueError: when the rule or the number of tasks was another.
        """
        constants = self._constants()
        check_like(state, {**constants, "num_tasks": self.num_tasks, "rng": ""}, ("outer_step",))
        for name, own in {**constants, "num_tasks": self.num_tasks}.items():
            # an estimated constant may differ in its last digits on another machine
            if not math.isclose(own, state[name], rel_tol=1e-6):
                raise ValueError(f"{name} of the adaptive step is {own}, but was {state[name]} in training")
        restore_generator(self._rng, state["rng"])

    def _constants(self) -> dict[str, float]:
        return {"c": float(self.rule.c), "constant": float(self.rule.constant), "slope": float(self.rule.slope)}

    def _mean_gradient_norm(self, params: Params, counted_with: TaskBatch) -> float:
        tasks = wrap_like(self.source.sample(self.num_tasks, self._rng), counted_with)
        w = tree.broadcast(params, tasks.num_tasks)
        grads = gradients(tasks, w, tasks.draw(w, "inner"))
        return float(share_of(tasks).mean(vmap(tree.norm)(grads)))
