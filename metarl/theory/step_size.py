"""Outer step sizes that follow the smoothness of the meta-objective, which is not bounded but grows with the gradient.

    beta = c / (constant + slope * mean_j |grad f_j(w)|)

Fallah et al. (2020, eq. 1.12): constant 4 L, slope 2 rho alpha, one inner step. Ji et al. (2022): constant
(1 + alpha L)^{2N} L and slope C_L for N steps. `metarl.step.AdaptiveStep` takes the mean from draws of its own.
"""

import warnings
from typing import NamedTuple

from metarl.errors import check_choice, check_int, check_real
from metarl.theory.inner_lr import TheoryWarning, warn_if_too_large

NUMERATOR = {"maml": 1 / 12, "fo_maml": 1 / 18, "hf_maml": 1 / 25}
"""Fallah et al.'s c of beta = c / L~(w)."""

LARGEST_ALPHA_L = {"maml": 1.0, "fo_maml": 1 / 10, "hf_maml": 1 / 6}
"""Up to which alpha L Fallah et al.'s theorems hold."""


class StepSizeRule(NamedTuple):
    """`beta = c / (constant + slope * mean_norm)`."""

    c: float
    constant: float
    slope: float

    def smoothness(self, mean_norm: float) -> float:
        """The denominator: how smooth the meta-objective is where the tasks' gradients have this mean norm."""
        return self.constant + self.slope * mean_norm

    def step_size(self, mean_norm: float) -> float:
        """beta."""
        return self.c / self.smoothness(mean_norm)


def fallah_rule(method: str, L: float, rho: float, inner_lr: float) -> StepSizeRule:
    """`L~ = 4 L + 2 rho alpha mean |g|` with c = 1/12 (`maml`), 1/18 (`fo_maml`) or 1/25 (`hf_maml`).

    Args:
        method: which update the step is for.
        L: Lipschitz constant of the tasks' gradients.
        rho: Lipschitz constant of their Hessians; 0 for quadratics.
        inner_lr: alpha; the theorems want at most 1/L, 1/(10 L) and 1/(6 L). Beyond it there is a `TheoryWarning`, and
            the rule is only a heuristic.

    Example:
        >>> rule = fallah_rule("maml", L=0.5, rho=1.0, inner_lr=0.25)
        >>> rule.smoothness(4.0), rule.step_size(4.0) * 12
        (4.0, 0.25)
    """
    c = NUMERATOR[check_choice("method", method, NUMERATOR)]
    _check(L, rho, inner_lr)
    warn_beyond_theorem(method, inner_lr, L)
    return StepSizeRule(c, 4 * L, 2 * rho * inner_lr)


def ji_rule(L: float, rho: float, inner_lr: float, inner_steps: int, c_beta: float = 80.0) -> StepSizeRule:
    """`L^ = (1 + alpha L)^{2N} L + C_L mean |g|` and `beta = 1 / (C_beta L^)`, for N = `inner_steps`.

    The theorem wants alpha L < 2^{1/(2N)} - 1; beyond it there is a `TheoryWarning`.

    We know this form, and 80 for C_beta, at second hand only; at N = 1 and alpha L = 1 it has Fallah et al.'s L(w).
    """
    slope = ji_slope(L, rho, inner_lr, inner_steps)
    warn_if_too_large(inner_lr, L, inner_steps, stacklevel=3)
    return StepSizeRule(1 / check_real("c_beta", c_beta), (1 + inner_lr * L) ** (2 * inner_steps) * L, slope)


def ji_slope(L: float, rho: float, inner_lr: float, inner_steps: int) -> float:
    """C_L, how much the smoothness of N-step MAML grows with the tasks' gradients.

    `C_L = [(1 + aL)^{N-1} a rho + (rho / L) (1 + aL)^N ((1 + aL)^{N-1} - 1)] (1 + aL)^N` with a = alpha: known to us at
    second hand, like the rest of `ji_rule`.
    """
    _check(L, rho, inner_lr)
    n, growth = check_int("inner_steps", inner_steps), 1 + inner_lr * L
    first = growth ** (n - 1) * inner_lr * rho
    return (first + rho / L * growth**n * (growth ** (n - 1) - 1)) * growth**n


def warn_beyond_theorem(method: str, inner_lr: float, L: float) -> bool:
    """Give a `TheoryWarning` when alpha L is beyond the range of the method's theorem; returns whether it did.

    To be called where a user chose alpha: the warning points to the caller of the caller.
    """
    alpha_l, largest = inner_lr * L, LARGEST_ALPHA_L[method]
    if alpha_l <= largest * (1 + 1e-6):  # L and alpha = 1 / L may be rounded
        return False
    warnings.warn(
        f"inner_lr = {inner_lr:.4g} with L = {L:.4g} makes alpha L = {alpha_l:.4g}, but the theorem for {method} needs"
        f" at most {largest:.4g}: inner_lr = {largest / L:.4g}",
        TheoryWarning,
        stacklevel=3,
    )
    return True


def _check(L: float, rho: float, inner_lr: float) -> None:
    check_real("L", L)
    check_real("rho", rho, open_low=False)
    check_real("inner_lr", inner_lr)
