"""The papers' claims, one file each: a function `check(quick) -> Findings` that measures and draws."""

from collections.abc import Callable
from typing import NamedTuple

from metarl.experiments.reports.claims import (
    batches,
    complexity,
    floors,
    imaml,
    moreau,
    multi_step,
    sign,
    step_size,
    two_quadratics,
)
from metarl.experiments.reports.claims.common import Findings, Row

__all__ = ["CLAIMS", "Claim", "Findings", "Row"]


class Claim(NamedTuple):
    """What is claimed, in a few words, and how it is checked."""

    name: str  # of its file and its picture
    title: str
    check: Callable[[bool], Findings]


CLAIMS = {
    1: Claim("two_quadratics", "FO-MAML converges elsewhere than MAML", two_quadratics.check),
    2: Claim("floors", "FO-MAML stalls, MAML and HF-MAML do not", floors.check),
    3: Claim("batches", "What larger batches and a smaller alpha buy", batches.check),
    4: Claim("multi_step", "Several inner steps need alpha of order 1/(N L)", multi_step.check),
    5: Claim("sign", "Sign-MAML: first order, exact, blind to scale", sign.check),
    6: Claim("moreau", "FO-MuML descends on the Moreau envelopes", moreau.check),
    7: Claim("imaml", "iMAML's objective is neither convex nor smooth", imaml.check),
    8: Claim("step_size", "The adaptive step size", step_size.check),
    9: Claim("complexity", "O(1/eps^2) iterations to an eps-stationary point", complexity.check),
}
"""By number."""
