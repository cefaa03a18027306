"""The adaptive step size: small where the gradients are large, because the meta-objective is less smooth there."""

import itertools

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports.theory.common import Findings, Row, label, panels
from metarl.experiments.reports.theory.numerics import (
    Descent,
    Direction,
    descend,
    difference_quotient,
    direction,
    slope,
)
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.theory import AdaptiveStep, StepSizeRule, fallah_rule
from metarl.types import Batch, Params

SOURCE = "Fallah et al. 2020"
MEAN, RIPPLE = 0.5, 0.5  # f'' = MEAN + RIPPLE cos(w - c)
L, RHO, ALPHA = MEAN + RIPPLE, RIPPLE, 0.75 / (MEAN + RIPPLE)
CENTRES = (-0.2, -0.1, 0.1, 0.2)


def loss(params: Params, batch: Batch) -> Tensor:
    """A bowl with ripples: `MEAN (w - c)^2 / 2 - RIPPLE cos(w - c)`; L = MEAN + RIPPLE, rho = RIPPLE."""
    gap = params["w"] - batch["c"]
    return (MEAN / 2 * gap.square() - RIPPLE * torch.cos(gap)).sum()


def source(start: float) -> FiniteSumSource:
    """Four tasks; MAML's objective has its minimum at zero."""
    centres = torch.tensor(CENTRES, dtype=torch.float64)[:, None]
    tasks = FiniteSumTaskBatch(loss, {"c": centres})
    return FiniteSumSource(tasks, {"w": torch.tensor([start], dtype=torch.float64)})


def check(quick: bool = False) -> Findings:
    """MAML on a bowl with ripples, alpha L = 0.75."""
    far, iterations = (10.0, 900) if quick else (40.0, 6000)
    exact = direction(make_method("maml", ALPHA), source(0.0).tasks)
    curvature = float(exact(torch.tensor([1e-4]).double())) / 1e-4  # F''(0), where F' vanishes
    rule = fallah_rule("maml", L, RHO, ALPHA)
    at_solution = rule.smoothness(mean_norm(0.0))

    adaptive = run(far, rule, iterations)
    constants = {
        name: run(start, StepSizeRule(beta, 1.0, 0.0), steps)
        for name, start, beta, steps in [
            ("tuned, near", 0.5, 1 / curvature, 60),
            ("tuned, far", far, 1 / curvature, 60),
            ("1/L(w*), far", far, 1 / at_solution, 200 if quick else 1500),
        ]
    }
    figure, (left, right) = panels(2)
    rows = [not_smooth(left, exact), shrinks(adaptive, rule), *compare(adaptive, constants, exact, curvature)]
    draw(right, adaptive, constants)
    return Findings(
        rows,
        figure,
        "The divergent step size is 1/F''(w*), the one a user finds by tuning near the solution. L(w*) is larger, at "
        "least 4 L, and |grad F| <= (1 + alpha L)^2 mean |grad f|. We found no L-smooth tasks on which descent with "
        "1/L(w*) diverges; here it is faster than the adaptive step, whose c = 1/12 is cautious.",
    )


def mean_norm(w: float) -> float:
    """The mean over tasks of |f_i'(w)|, in closed form."""
    gaps = w - np.array(CENTRES)
    return float(np.abs(MEAN * gaps + RIPPLE * np.sin(gaps)).mean())


def run(start: float, rule: StepSizeRule, iterations: int) -> Descent:
    """Run MAML with `AdaptiveStep`; a rule without a slope is a constant step size."""
    tasks, number = source(start), len(CENTRES)
    step = AdaptiveStep(rule, tasks, num_tasks=number)
    return descend(tasks, make_method("maml", ALPHA), iterations, step, number, torch.Tensor.item)


def not_smooth(ax: Axes, exact: Direction) -> Row:
    """The largest |F''| in two periods around growing w, against L(w)."""
    centres = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    found, bounds = [], []
    rule = fallah_rule("maml", L, RHO, ALPHA)
    for centre in centres:
        w = centre + torch.linspace(-np.pi, np.pi, 41, dtype=torch.float64)
        found.append(max(abs(difference_quotient(exact, v[None]).item()) for v in w))
        bounds.append(rule.smoothness(mean_norm(centre + np.pi)))
    ax.loglog(centres, found, "o-", label="largest |F''| near w")
    ax.loglog(centres, bounds, "k:", label="L(w)")
    label(ax, "MAML's objective is not globally smooth", "w", "curvature")
    power, ratios = slope(centres[3:], found[3:]), [f / b for f, b in zip(found, bounds, strict=True)]
    claim = "F'' grows with the tasks' gradients and stays below L(w) = 4 L + 2 rho alpha mean |grad f|, w = 3 ... 1000"
    measured, good = f"power {power:.2f}; at most {max(ratios):.2f} of it", abs(power - 1) < 0.05 and max(ratios) <= 1
    return Row(claim, SOURCE, "power 1 in w; below", measured, good)


def shrinks(adaptive: Descent, rule: StepSizeRule) -> Row:
    """The logged step sizes against the closed form, and where they are smallest."""
    exact = [rule.c / (4 * L + 2 * RHO * ALPHA * mean_norm(w)) for w in adaptive.seen[:-1]]
    error = max(abs(beta / b - 1) for beta, b in zip(adaptive.outer_lr, exact, strict=True))
    first, last = adaptive.outer_lr[0], adaptive.outer_lr[-1]
    claim = "beta_k = c / (4 L + 2 rho alpha mean |grad f|) is small where the tasks' gradients are large"
    places = f"{first:.4f} at w = {adaptive.seen[0]:g}, {last:.4f} at {adaptive.seen[-1]:.2g}"
    measured, good = f"relative error {error:.0e}; {places}", error < 1e-12 and first < 0.7 * last
    return Row(claim, SOURCE, "the formula; smaller far away than near the solution", measured, good)


def compare(adaptive: Descent, constants: dict[str, Descent], exact: Direction, curvature: float) -> list[Row]:
    """The adaptive step and constant ones, from near and from far."""

    def gradient(w: float) -> float:
        return float(exact(torch.tensor([w], dtype=torch.float64)).norm())

    near, far, safe = (constants[name].seen for name in ("tuned, near", "tuned, far", "1/L(w*), far"))
    start, near_end, safe_end, end = (gradient(w) for w in (adaptive.seen[0], near[-1], safe[-1], adaptive.seen[-1]))
    falls = end < 0.1 * start and all(abs(b) <= abs(a) for a, b in itertools.pairwise(adaptive.seen))

    tuned = f"a constant beta tuned at the solution, 1/F'' = {1 / curvature:.1f}, converges from near"
    far_away = "this constant beta diverges from far away"
    from_near = f"{near_end:.1e} after {len(near) - 1} from w = {near[0]:g}"
    from_far = f"|w| = {abs(far[-1]):.0e} after {len(far) - 1} from w = {far[0]:g}"
    claim, expected = "the adaptive beta converges from far away", "|w| falls steadily, |grad F| to a tenth or less"
    reading, source = "a constant 1/L(w*) diverges from far away", "a reading of Fallah et al. 2020"
    converges = f"it converges: |grad F| = {safe_end:.1e} after {len(safe) - 1}"
    return [
        Row(tuned, SOURCE, "|grad F| < 1e-8", from_near, near_end < 1e-8),
        Row(far_away, SOURCE, "|w| grows a hundredfold", from_far, abs(far[-1]) > 100 * abs(far[0])),
        Row(claim, SOURCE, expected, f"from {start:.2g} to {end:.1e} in {len(adaptive.seen) - 1}", falls),
        Row(reading, source, "divergence", converges, abs(safe[-1]) > abs(safe[0]), required=False),
    ]


def draw(ax: Axes, adaptive: Descent, constants: dict[str, Descent]) -> None:
    """|w| against the iteration."""
    for name, found in {"adaptive, far": adaptive, **constants}.items():
        ax.loglog(np.arange(1, len(found.seen) + 1), np.abs(found.seen), label=name)
    ax.set_ylim(1e-9, 1e9)
    label(ax, "MAML on a bowl with ripples, alpha L = 0.75", "iteration + 1", "|w|")
