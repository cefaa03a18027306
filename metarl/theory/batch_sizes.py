"""How large batches must be for the theorems to hold, from the constants of the problem.

They are sufficient, not necessary, and from constants that were estimated they are themselves estimates.
"""

import math
from typing import NamedTuple

from metarl.errors import check_choice, check_int, check_real
from metarl.theory.constants import Constants
from metarl.theory.step_size import NUMERATOR, ji_slope


class FallahBatches(NamedTuple):
    """The least sizes of Fallah et al. (2020)."""

    tasks: int  # B, tasks per iteration
    step_tasks: int  # B', tasks for the step size
    step_samples: int  # D_beta, samples of each of them
    hessian: int  # D_h, samples per task; 0 where no Hessian is taken


class JiBatches(NamedTuple):
    """The least sizes of Ji et al. (2022)."""

    step_tasks: int  # |B'|
    step_samples: int  # |D_L|


def fallah_batches(method: str, constants: Constants, inner_lr: float) -> FallahBatches:
    """Batches under which `fallah_rule` and the method's theorem hold.

        B >= 20,   B' >= (rho alpha sigma / L)^2 / 2,   D_beta >= (2 rho alpha sigma~ / L)^2
        D_h >= 2 alpha^2 sigma_H^2 (`maml`),   36 (alpha rho sigma_H)^2 (`hf_maml`),   none (`fo_maml`)

    Example:
        >>> fallah_batches("maml", Constants(L=1.0, rho=2.0, sigma=10.0, sample_sigma=5.0, hessian_sigma=4.0), 0.5)
        FallahBatches(tasks=20, step_tasks=50, step_samples=100, hessian=8)
    """
    check_choice("method", method, NUMERATOR)
    alpha, c = check_real("inner_lr", inner_lr), _checked(constants)
    ratio = c.rho * alpha / c.L
    hessian = {
        "maml": _at_least(2 * (alpha * c.hessian_sigma) ** 2),
        "hf_maml": _at_least(36 * (alpha * c.rho * c.hessian_sigma) ** 2),
        "fo_maml": 0,
    }
    step_tasks, step_samples = 0.5 * (ratio * c.sigma) ** 2, (2 * ratio * c.sample_sigma) ** 2
    return FallahBatches(20, _at_least(step_tasks), _at_least(step_samples), hessian[method])


def ji_batches(constants: Constants, inner_lr: float, inner_steps: int) -> JiBatches:
    """Batches under which `ji_rule` holds, with C_L as there; we know both conditions at second hand only.

    |B'| > 4 C_L^2 sigma^2 / (3 (1 + alpha L)^{4N} L^2),   |D_L| > 64 C_L^2 sigma~^2 / ((1 + alpha L)^{4N} L^2)
    """
    c = _checked(constants)
    slope = ji_slope(c.L, c.rho, inner_lr, check_int("inner_steps", inner_steps))
    ratio = slope / ((1 + inner_lr * c.L) ** (2 * inner_steps) * c.L)
    return JiBatches(_more_than(4 / 3 * (ratio * c.sigma) ** 2), _more_than(64 * (ratio * c.sample_sigma) ** 2))


def _checked(constants: Constants) -> Constants:
    check_real("L", constants.L)
    for name, value in constants._asdict().items():
        check_real(name, value, open_low=False)
    return constants


def _at_least(size: float) -> int:
    return max(1, math.ceil(size))


def _more_than(size: float) -> int:
    return math.floor(size) + 1
