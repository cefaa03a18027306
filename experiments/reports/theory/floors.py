"""On logistic tasks FO-MAML stalls, MAML does not, and HF-MAML's floor falls with the square of the probe length."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure

from metarl import Inner, Method, make_method, tree
from metarl.derivatives import gradients
from metarl.experiments.reports.theory.common import Findings, Row, is_near, label, listing, panels, scientific
from metarl.experiments.reports.theory.numerics import (
    ORIGIN,
    P2,
    TASKS,
    L,
    descend,
    direction,
    find_zero,
    floor,
    grad_norm,
)
from metarl.inner import sgd
from metarl.outer.maml import adapt_and_pull_back
from metarl.theory.logistic import logistic_source
from metarl.types import Batch, Params, TaskBatch

SOURCE = "Fallah et al. 2020"
FO_FLOORS = {0.1: 3.5e-3, 0.5: 1.4e-2, 0.9: 1.9e-2}
HF_FLOORS = {0.1: (1.4e-4, 1.5e-6, 1.5e-8), 0.5: (4.0e-4, 4.2e-6, 4.2e-8), 0.9: (2.3e-4, 2.3e-6, 2.3e-8)}
DELTAS = (1.0, 0.1, 0.01)
PUBLISHED = {0.384: 9.9e-4, 1.43: 8.0e-5}  # rho: the floor of rule (1.9) at alpha L = 0.5

Floor: TypeAlias = Callable[[Method, float], float]
"""`(method, alpha L) -> |grad F|` at the method's fixed point."""


def fixed_delta(alpha: float, delta: float) -> Method:
    """HF-MAML with `w +- delta v` for a fixed delta; the library's own rules fix the length of the probe instead."""
    d = delta / alpha  # the vector to be multiplied is -alpha v

    def multiply(tasks: TaskBatch, w: Params, batch: Batch, u: Params) -> Params:
        above, below = (gradients(tasks, tree.add_scaled(w, s * d, u), batch) for s in (1, -1))
        return {key: (above[key] - below[key]) / (2 * d) for key in u}

    return Method(adapt_and_pull_back(multiply, "fresh"), Inner(sgd(alpha)))


def check(quick: bool = False) -> Findings:
    """Fixed points by Newton's method on the real updates; trajectories by plain descent with the real learner."""
    solutions = {a_l: find_zero(direction(make_method("maml", a_l / L), TASKS), ORIGIN) for a_l in FO_FLOORS}

    def floor_at(method: Method, a_l: float) -> float:
        return floor(method, TASKS, a_l / L, solutions[a_l])

    hf = {a_l: [floor_at(fixed_delta(a_l / L, delta), a_l) for delta in DELTAS] for a_l in FO_FLOORS}
    return Findings(
        [*first_order_rows(floor_at), *hessian_free_rows(hf), *published_rows(floor_at)],
        draw(hf, 100 if quick else 1000),
        "The published rule delta = 1 / (6 rho alpha |v|) has a probe of constant length 1 / (6 rho alpha). The bound "
        "on its error, rho delta |v|^2, times alpha is then |v| / 6, a share that does not shrink near the solution: "
        "at full batch there is a floor. (We know the rule from a summary of the paper, which may have lost a factor.)",
    )


def first_order_rows(floor_at: Floor) -> list[Row]:
    """FO-MAML's floor and MAML's at each alpha L."""
    rows = []
    for a_l, expected in FO_FLOORS.items():
        fo, maml = (floor_at(make_method(name, a_l / L), a_l) for name in ("fo_maml", "maml"))
        claim, good = f"FO-MAML stalls, alpha L = {a_l}", is_near(fo, expected)
        rows.append(Row(claim, SOURCE, f"grad F {expected}", scientific(fo), good))
        rows.append(Row(f"MAML does not stall, alpha L = {a_l}", SOURCE, "< 1e-12", scientific(maml), maml < 1e-12))
    return rows


def hessian_free_rows(floors: dict[float, list[float]]) -> list[Row]:
    """HF-MAML's floors for fixed delta, which fall with its square."""
    rows = []
    for a_l, found in floors.items():
        ratio = found[1] / found[2]
        good = all(is_near(a, b) for a, b in zip(found, HF_FLOORS[a_l], strict=True)) and 90 < ratio < 110
        claim = f"HF-MAML's floor falls as delta^2, alpha L = {a_l}, delta = {listing(DELTAS)}"
        expected, measured = f"{listing(HF_FLOORS[a_l])}; last ratio 100", f"{listing(found)}; last ratio {ratio:.1f}"
        rows.append(Row(claim, SOURCE, expected, measured, good))
    return rows


def published_rows(floor_at: Floor) -> list[Row]:
    """The published delta = 1 / (6 rho alpha |v|): below FO-MAML's floor, but a floor."""
    a_l, rows = 0.5, []
    found = {rho: floor_at(make_method("hf_maml", a_l / L, delta="published", rho=rho), a_l) for rho in PUBLISHED}
    default, fo = (floor_at(make_method(name, a_l / L), a_l) for name in ("hf_maml", "fo_maml"))
    for rho, value in found.items():
        claim = f"the published rule stalls below FO-MAML, alpha L = 0.5, rho = {rho}"
        expected, good = f"grad F {PUBLISHED[rho]:.1e} < {fo:.2g}", is_near(value, PUBLISHED[rho]) and value < fo
        rows.append(Row(claim, SOURCE, expected, scientific(value), good))
    claim = "HF-MAML with the published rule reaches any accuracy (full batches, alpha L = 0.5)"
    measured = f"stops at {listing(list(found.values()))}"
    rows.append(Row(claim, SOURCE, "< 1e-8", measured, max(found.values()) < 1e-8, required=False))
    claim = "HF-MAML with the library's default probe does not stall, alpha L = 0.5"
    rows.append(Row(claim, "the library", "< 1e-8", scientific(default), default < 1e-8))
    return rows


def draw(hf: dict[float, list[float]], iterations: int) -> Figure:
    """Left: runs of the real learner at alpha L = 0.5. Right: floors against delta."""
    figure, (left, right) = panels(2)
    alpha = 0.5 / L
    runs = {
        "FO-MAML": make_method("fo_maml", alpha),
        "HF, published rule, rho = 0.384": make_method("hf_maml", alpha, delta="published", rho=0.384),
        **{f"HF, delta = {delta:g}": fixed_delta(alpha, delta) for delta in DELTAS},
        "MAML": make_method("maml", alpha),
    }
    for name, method in runs.items():
        run = descend(
            logistic_source(P2), method, iterations, 0.5, 6, grad_norm(TASKS, alpha), max(1, iterations // 100)
        )
        left.semilogy(run.at, np.maximum(run.seen, 1e-17), "--" if "delta" in name else "-", label=name)
    label(left, "P2, alpha L = 0.5, beta = 0.5, full batches", "iteration", "|grad F(w)|", legend=False)
    left.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.1))
    for a_l, floors in hf.items():
        (line,) = right.loglog(DELTAS, floors, "o-", label=f"HF-MAML, alpha L = {a_l}")
        right.axhline(FO_FLOORS[a_l], color=line.get_color(), linestyle=":")
    label(right, "where HF-MAML stops (dotted: FO-MAML)", "delta", "|grad F| at the fixed point")
    return figure
