"""Iterations to an eps-stationary point: MAML and HF-MAML need O(1/eps^2) at most, FO-MAML may never get there."""

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports.theory.common import TITLES, Findings, Row, label, panels
from metarl.experiments.reports.theory.numerics import P2, Descent, descend, grad_norm, slope
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.theory.logistic import logistic_source, smoothness
from metarl.types import Batch, Params

SOURCE = "Fallah et al. 2020; Ji, Yang, Liang 2022"
TAIL = 0.25  # f falls as w^-TAIL
STYLE = {"maml": "-", "hf_maml": "--", "fo_maml": "-"}  # the curves of MAML and HF-MAML coincide


def check(quick: bool = False) -> Findings:
    """Plain descent with full batches on two non-convex problems."""
    figure, (left, middle, right) = panels(3)
    rows = [*logistic(left, 300 if quick else 2000), *slow_tail(middle, right, 300 if quick else 3000)]
    return Findings(
        rows,
        figure,
        "O(1/eps^2) is an upper bound for every smooth function. Near a minimum descent is far faster (left), so the "
        "measured power is small; on functions that fall as w^-p towards a minimum at infinity the power is "
        f"(2 + p) / (1 + p) by the gradient flow, which tends to 2 as p goes to zero; here p = {TAIL}.",
    )


def logistic(ax: Axes, iterations: int) -> list[Row]:
    """P2's data with the sigmoid loss and a bounded regulariser, alpha L = 0.9."""
    problem = P2._replace(margin="sigmoid", regulariser="bounded", strength=0.05)
    source, L = logistic_source(problem), smoothness(problem)
    alpha, rows = 0.9 / L, []
    for name, title in TITLES.items():
        method, total = make_method(name, alpha), iterations if name == "fo_maml" else iterations // 4
        run = descend(source, method, total, 1 / L, 6, grad_norm(source.tasks, alpha), 2)
        ax.loglog(run.at[1:], np.maximum(run.seen[1:], 1e-17), STYLE[name], label=title)
        least = min(run.seen)
        if name == "fo_maml":
            claim = "FO-MAML does not get below a floor (non-convex logistic tasks)"
            measured = f"least {least:.1e}, at the end {run.seen[-1]:.1e}"
            rows.append(Row(claim, SOURCE, "> 5e-3", measured, least > 5e-3))
            continue
        targets = np.geomspace(1e-2, 1e-4, 9)
        power = slope(1 / targets, first_below(run, targets))
        claim = f"{title} reaches eps = 1e-4 (non-convex logistic tasks), iterations as a power of 1/eps"
        rows.append(Row(claim, SOURCE, "at most 2", f"{power:.2f}; least {least:.1e}", power <= 2))
    label(ax, "P2 with sigmoid loss, bounded regulariser", "iteration", "|grad F|")
    return rows


def first_below(run: Descent, targets: npt.NDArray[np.float64]) -> list[int]:
    """For each target, the first iteration at which the watched value is at most the target.

    Raises:
        ArithmeticError: when a target is never reached.
    """
    seen = np.asarray(run.seen)
    if seen.min() > min(targets):
        raise ArithmeticError(f"the run must reach {min(targets):.1e}, got {seen.min():.1e}")
    return [run.at[int(np.argmax(seen <= target))] for target in targets]


def tail_loss(params: Params, batch: Batch) -> Tensor:
    """`(1 + (w - c)^2)^(-p/2)`: smooth with L = p, bounded below, its minimum at infinity."""
    return ((1 + (params["w"] - batch["c"]).square()) ** (-TAIL / 2)).sum()


def slow_tail(trajectories: Axes, power_plot: Axes, iterations: int) -> list[Row]:
    """Three tasks whose gradient falls slowly."""
    centres = torch.tensor([[-0.5], [0.0], [0.5]], dtype=torch.float64)
    tasks = FiniteSumTaskBatch(tail_loss, {"c": centres})
    source = FiniteSumSource(tasks, {"w": torch.ones(1, dtype=torch.float64)})
    alpha, expected, rows = 0.5 / TAIL, (2 + TAIL) / (1 + TAIL), []
    for name in ("maml", "hf_maml"):
        run = descend(source, make_method(name, alpha), iterations, 1 / TAIL, 3, grad_norm(tasks, alpha))
        trajectories.loglog(run.at[1:], run.seen[1:], STYLE[name], label=TITLES[name])
        targets = np.geomspace(10 * run.seen[-1], run.seen[-1], 12)
        reached = first_below(run, targets)
        power = slope(1 / targets, reached)
        power_plot.loglog(1 / targets, reached, "o" + STYLE[name], label=f"{TITLES[name]}: power {power:.2f}")
        claim = f"{TITLES[name]}'s iterations on tasks with a slow tail, as a power of 1/eps"
        good = abs(power - expected) < 0.1 and power <= 2
        rows.append(Row(claim, SOURCE, f"{expected:.2f}, at most 2", f"{power:.2f}", good))
    power_plot.loglog(1 / targets, reached[-1] * (targets[-1] / targets) ** 2, "k:", label="power 2")
    label(trajectories, f"tasks falling as w^-{TAIL}", "iteration", "|grad F|")
    label(power_plot, f"tasks falling as w^-{TAIL}", "1 / eps", "iterations to |grad F| <= eps")
    return rows
