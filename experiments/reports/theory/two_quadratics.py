"""FO-MAML does not converge to MAML's solution: two quadratics, where every fixed point is known."""

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports.theory.common import Findings, Row, label, panels, scientific
from metarl.experiments.reports.theory.numerics import descend, direction
from metarl.theory.quadratics import (
    Quadratics,
    fixed_point,
    fo_maml_matrix,
    maml_matrix,
    mean_gradient,
    moreau_matrix,
    quadratic_source,
    quadratics_1d,
)

ALPHA, BETA = 0.25, 0.2
SOURCE = "Fallah et al. 2020; closed form"
MISHCHENKO = "Mishchenko et al. 2023; closed form"
ENVELOPES = "FO-MuML (S = 25) converges to the minimiser of the Moreau envelopes"
CASES: list[tuple[str, Callable[[Tensor, float], Tensor], str, float, str]] = [
    ("fo_maml", fo_maml_matrix, "FO-MAML converges to -1/7", -1 / 7, SOURCE),
    ("maml", maml_matrix, "MAML converges to 1/17", 1 / 17, SOURCE),
    ("hf_maml", maml_matrix, "HF-MAML converges to 1/17 too", 1 / 17, SOURCE),
    ("moreau", moreau_matrix, ENVELOPES, -0.25, MISHCHENKO),
]
"""An update, the matrix of its meta-gradient, what is claimed of it, where it converges to, and the source."""


def check(quick: bool = False) -> Findings:
    """MAML, HF-MAML, FO-MAML and FO-MuML from zero on a = (1, 2), c = (1, -1)."""
    iterations = 200 if quick else 2000
    problem = quadratics_1d()
    source = quadratic_source(problem)
    exact = direction(make_method("maml", ALPHA), source.tasks)
    rows, ends, runs = [], {}, {}
    for name, matrix, claim, to, source_of_claim in CASES:
        target = fixed_point(problem, matrix(problem.curvatures, ALPHA)).item()
        steps, total = (25, 80) if name == "moreau" else (1, iterations)
        method = make_method(name, ALPHA, steps)
        runs[name] = descend(source, method, total, BETA, 2, partial(distance, target), 5)
        ends[name] = runs[name].end
        end = ends[name].item()
        rows.append(Row(claim, source_of_claim, f"{target:.6f}", f"{end:.6f}", abs(end - to) < 1e-6))

    # the gradient of MAML's objective where the methods stop
    gap, claim = exact(ends["fo_maml"]).item(), "grad F is not zero where FO-MAML stops"
    rows.insert(1, Row(claim, SOURCE, "-3/28", f"{gap:.6f}", abs(gap + 3 / 28) < 1e-6))
    for name, title in [("maml", "MAML"), ("hf_maml", "HF-MAML")]:
        size = exact(ends[name]).norm().item()
        rows.append(Row(f"|grad F| is zero where {title} stops", SOURCE, "< 1e-8", scientific(size), size < 1e-8))
    rows.append(shared_curvature(250))

    figure, (left, right) = panels(2)
    grid = np.linspace(-0.5, 0.4, 100)
    left.plot(grid, [maml_objective(problem, w) for w in grid], color="black", label="F")
    for name, marker in [("maml", "o"), ("fo_maml", "s"), ("moreau", "^")]:
        w = ends[name].item()
        left.plot(w, maml_objective(problem, w), marker, label=f"{name}: {w:.4f}")
    label(left, "MAML's objective and where each method stops", "w", "F(w)")
    for name, run in runs.items():
        right.semilogy(run.at, np.maximum(run.seen, 1e-17), "--" if name == "hf_maml" else "-", label=name)
    right.set_xlim(0, 200)
    label(right, "distance to each method's own fixed point", "iteration", "|w - w*|")
    remark = "The three objectives have three different minimisers; no step size removes the difference."
    return Findings(rows, figure, remark)


def distance(target: float, w: Tensor) -> float:
    """Of a one-dimensional w from the target."""
    return abs(w.item() - target)


def maml_objective(problem: Quadratics, w: float) -> float:
    """F(w) in closed form: adaptation multiplies `w - c` by `1 - alpha a`."""
    a, c = problem.curvatures.flatten(), problem.centres.flatten()
    return (0.5 * a * ((1 - ALPHA * a) * (w - c)).square()).mean().item()


def shared_curvature(iterations: int) -> Row:
    """With one curvature for all tasks, the fixed points are equal."""
    problem = quadratics_1d([0.7, 0.7, 0.7], [1.0, -1.0, 0.3])
    source = quadratic_source(problem)
    fo, maml = (descend(source, make_method(name, ALPHA), iterations, BETA, 3).end for name in ("fo_maml", "maml"))
    apart = (fo - maml).norm().item()
    residual = mean_gradient(problem, maml_matrix(problem.curvatures, ALPHA), fo).norm().item()
    claim = "FO-MAML and MAML agree if all tasks have one curvature"
    measured = f"{apart:.1e} apart, grad F {residual:.1e}"
    return Row(claim, SOURCE, "< 1e-9 apart", measured, apart < 1e-9 and residual < 1e-9)
