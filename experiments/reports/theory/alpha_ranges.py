"""The inner step sizes that the theorems cover: a run that leaves its method's range gets one warning."""

import warnings

import numpy as np
from matplotlib.axes import Axes

from metarl import MetaLearner, make_method
from metarl.experiments.reports.theory.common import Findings, Row, label, panels
from metarl.theory import AdaptiveStep, StepSizeRule, TheoryWarning, alpha_range, fallah_rule, ji_rule
from metarl.theory.monitors import SmoothnessMonitor
from metarl.theory.quadratics import quadratic_source, quadratics_1d

CURVATURES = (1.0, 2.0)  # L is the larger one
L = max(CURVATURES)
FALLAH, JI, MISHCHENKO = "Fallah et al. 2020", "Ji, Yang, Liang 2022", "Mishchenko, Hanzely, Richtarik 2023"


def check(quick: bool = False) -> Findings:
    """Every method with a range, just inside and just outside; the same in the quick form."""
    figure, (ax,) = panels(1)
    draw(ax)
    rows = [
        one_warning("maml", 1, FALLAH, 1.0),
        one_warning("fo_maml", 1, FALLAH, 1 / 10),
        one_warning("hf_maml", 1, FALLAH, 1 / 6),
        one_warning("multi_step_maml", 3, JI, 2 ** (1 / 6) - 1),
        one_warning("moreau", 3, MISHCHENKO, 1.0),
    ]
    return Findings(
        rows,
        figure,
        "With several inner steps we know no theorem for FO-MAML and HF-MAML; the library takes the smaller of their "
        "one-step range and the range of multi-step MAML. Sign-MAML, iMAML, Reptile and E-MAML have no range here.",
    )


def one_warning(outer: str, steps: int, source: str, largest: float) -> Row:
    """The warnings of three iterations with a monitor of alpha L, at 2 % below and above the end of the range."""
    inside, outside = (count_warnings(outer, steps, factor * largest / L) for factor in (0.98, 1.02))
    claim = f"{outer}, N = {steps}: one warning in a run when alpha L passes {largest:.4g}"
    good = all(number == 0 for number in inside) and all(number == 1 for number in outside)
    measured = f"{', '.join(map(str, inside))} below; {', '.join(map(str, outside))} above"
    return Row(claim, f"{source}; the library", "none below the end of the range, one above", measured, good)


def theorem_step(outer: str, steps: int, alpha: float) -> StepSizeRule:
    """The outer step size of the method's theorem."""
    return ji_rule(L, 0.0, alpha, steps) if outer == "multi_step_maml" else fallah_rule(outer, L, 0.0, alpha)


def count_warnings(outer: str, steps: int, alpha: float) -> list[int]:
    """With Adam's outer step, and with the theorem's where we have one."""
    source = quadratic_source(quadratics_1d(CURVATURES))
    counts = []
    for theorem in (False,) if outer == "moreau" else (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rule = theorem_step(outer, steps, alpha) if theorem else None
            step = None if rule is None else AdaptiveStep(rule, source, 2)
            method = make_method(outer, alpha, steps)
            learner = MetaLearner.from_parts(source, method, step, meta_batch_size=2)
            learner.learn(3, [SmoothnessMonitor(1, num_tasks=2, iterations=30)])
        counts.append(sum(issubclass(w.category, TheoryWarning) for w in caught))
    return counts


def draw(ax: Axes) -> None:
    """The largest alpha L against N."""
    steps = np.arange(1, 21)
    for outer in ("maml", "hf_maml", "fo_maml", "moreau"):
        found = [alpha_range(outer, int(n)) for n in steps]
        ax.loglog(steps, [np.nan if one is None else one.largest for one in found], "o-", ms=3, label=outer)
    ax.loglog(steps, 1 / (8 * steps), "k:", label="1/(8 N), the corollaries' alpha L")
    label(ax, "the ranges of the theorems", "inner steps N", "largest alpha L")
