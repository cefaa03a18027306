"""How large the inner step size may be when N steps are taken (Ji, Yang, Liang, 2022).

    alpha L < 2^{1/(2N)} - 1,    the same as    (1 + alpha L)^{2N} < 2

Under it the product of N factors `I - alpha H` cannot grow or shrink geometrically, so the cost of a solution grows
linearly in N and not exponentially. The corollaries take alpha = 1 / (8 N L). Both speak of the step `w - alpha g`;
for a step by the sign, or one that restarts from `w`, they say nothing.
"""

import math
import warnings

from metarl.errors import check_int, check_real


class TheoryWarning(UserWarning):
    """A run's settings are outside of what the convergence theorems cover."""


def inner_lr_bound(inner_steps: int) -> float:
    """What alpha L must stay below for N = `inner_steps`: `2^{1/(2N)} - 1`.

    Example:
        >>> [round(inner_lr_bound(n), 5) for n in (1, 2, 5)]
        [0.41421, 0.18921, 0.07177]
    """
    return math.expm1(math.log(2) / (2 * check_int("inner_steps", inner_steps)))


def recommended_inner_lr(L: float, inner_steps: int) -> float:
    """What N-step theory chooses: `1 / (8 N L)`."""
    return 1 / (8 * check_int("inner_steps", inner_steps) * check_real("L", L))


def warn_if_too_large(inner_lr: float, L: float, inner_steps: int, *, stacklevel: int = 2) -> bool:
    """Give a `TheoryWarning` when alpha L is not below the bound; returns whether it did.

    `stacklevel` is that of `warnings.warn`.
    """
    alpha_l = check_real("inner_lr", inner_lr) * check_real("L", L, open_low=False)
    bound = inner_lr_bound(inner_steps)
    if alpha_l < bound:
        return False
    warnings.warn(
        f"inner_lr = {inner_lr:.4g} with L = {L:.4g} makes alpha L = {alpha_l:.4g}, but for {inner_steps} inner steps "
        f"theory needs less than {bound:.4g} and would choose inner_lr = {recommended_inner_lr(L, inner_steps):.4g}",
        TheoryWarning,
        stacklevel=stacklevel,
    )
    return True
