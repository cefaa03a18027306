"""FO-MAML does not converge to MAML's solution: two quadratics, where every fixed point is known."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports.theory.common import Findings, Row, label, panels, scientific
from metarl.experiments.reports.theory.numerics import KeepValues, descend, direction
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
MATRICES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "fo_maml": fo_maml_matrix,
    "maml": maml_matrix,
    "hf_maml": maml_matrix,
    "moreau": moreau_matrix,
}
CONVERGES = [
    ("fo_maml", "FO-MAML converges to -1/7", -1 / 7, SOURCE),
    ("maml", "MAML converges to 1/17", 1 / 17, SOURCE),
    ("hf_maml", "HF-MAML converges to 1/17 too", 1 / 17, SOURCE),
    (
        "moreau",
        "FO-MuML (S = 25) converges to the minimiser of the Moreau envelopes",
        -0.25,
        "Mishchenko et al. 2023; closed form",
    ),
]


def check(quick: bool = False) -> Findings:
    """MAML, HF-MAML, FO-MAML and FO-MuML from zero on a = (1, 2), c = (1, -1)."""
    iterations = 200 if quick else 2000
    problem = quadratics_1d()
    source = quadratic_source(problem)
    exact = direction(make_method("maml", ALPHA), source.tasks)
    targets = {
        name: fixed_point(problem, matrix(problem.curvatures, ALPHA)).item() for name, matrix in MATRICES.items()
    }
    watches = {name: KeepValues(lambda w, to=to: abs(w.item() - to), 5) for name, to in targets.items()}  # type: ignore[misc]
    ends = {}
    for name, watch in watches.items():
        method = make_method(name, ALPHA, 25 if name == "moreau" else 1)
        ends[name] = descend(source, method, 80 if name == "moreau" else iterations, BETA, 2, watch)

    rows = [
        Row(claim, source_of, f"{targets[name]:.6f}", f"{ends[name].item():.6f}", abs(ends[name].item() - to) < 1e-6)
        for name, claim, to, source_of in CONVERGES
    ]
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
    for name, watch in watches.items():
        right.semilogy(watch.at, np.maximum(watch.seen, 1e-17), "--" if name == "hf_maml" else "-", label=name)
    right.set_xlim(0, 200)
    label(right, "distance to each method's own fixed point", "iteration", "|w - w*|")
    remark = "The three objectives have three different minimisers; no step size removes the difference."
    return Findings(rows, figure, remark)


def maml_objective(problem: Quadratics, w: float) -> float:
    """F(w) in closed form: adaptation multiplies `w - c` by `1 - alpha a`."""
    a, c = problem.curvatures.flatten(), problem.centres.flatten()
    return (0.5 * a * ((1 - ALPHA * a) * (w - c)).square()).mean().item()


def shared_curvature(iterations: int) -> Row:
    """With one curvature for all tasks, the fixed points are equal."""
    problem = quadratics_1d([0.7, 0.7, 0.7], [1.0, -1.0, 0.3])
    source = quadratic_source(problem)
    fo, maml = (descend(source, make_method(name, ALPHA), iterations, BETA, 3) for name in ("fo_maml", "maml"))
    distance = (fo - maml).norm().item()
    residual = mean_gradient(problem, maml_matrix(problem.curvatures, ALPHA), fo).norm().item()
    claim, measured = (
        "FO-MAML and MAML agree if all tasks have one curvature",
        f"{distance:.1e} apart, grad F {residual:.1e}",
    )
    return Row(claim, SOURCE, "< 1e-9 apart", measured, distance < 1e-9 and residual < 1e-9)
