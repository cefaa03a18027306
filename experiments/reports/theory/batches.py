"""What larger batches buy: MAML's and HF-MAML's floors vanish, FO-MAML's does not; it is proportional to alpha."""

import numpy as np
import torch
from matplotlib.axes import Axes

from metarl import make_method
from metarl.experiments.reports.theory.common import TITLES, Findings, Row, is_near, label, listing, panels, scientific
from metarl.experiments.reports.theory.numerics import (
    ORIGIN,
    TASKS,
    L,
    descend,
    direction,
    find_zero,
    floor,
    grad_norm,
    slope,
)
from metarl.supervised import BatchSizes, FiniteSumSource
from metarl.theory.logistic import Logistic, logistic_tasks, random_logistic, smoothness

SOURCE = "Fallah et al. 2020"
ALPHA_L, BETA = 0.5, 0.25


def check(quick: bool = False) -> Findings:
    """FO-MAML's floor against alpha on P2; mean |grad F| in the stationary phase of runs against the batch sizes."""
    figure, (left, right) = panels(2)
    rows = [*linear_in_alpha(left), *vanishing(right, quick)]
    return Findings(
        rows,
        figure,
        "B tasks and minibatches D_in = D_o = D_h = B of a finite sum, drawn without replacement. Each point is the "
        f"mean of |grad F| over the iterates of a run that starts at MAML's solution, beta = {BETA}, without its first "
        "fifth. The theorems' floors are upper bounds for an adaptive beta; what is checked here is how they scale.",
    )


def linear_in_alpha(ax: Axes) -> list[Row]:
    """FO-MAML's floor on P2 for small alpha L."""
    small = (0.0125, 0.025, 0.05)
    alphas = {a_l: a_l / L for a_l in (*small, 0.1, 0.2, 0.4, 0.8)}
    floors = {a_l: floor(make_method("fo_maml", alpha), TASKS, alpha, ORIGIN) for a_l, alpha in alphas.items()}
    power = slope(small, [floors[a_l] for a_l in small])
    ax.loglog(list(floors), list(floors.values()), "o-", label="FO-MAML's floor")
    ax.loglog([0.0125, 0.8], [floors[0.0125], 64 * floors[0.0125]], "k:", label="proportional to alpha")
    label(ax, "P2, full batches", "alpha L", "|grad F|")
    values = [floors[0.05], floors[0.1]]
    claim, good = "FO-MAML's floor at alpha L = 0.05, 0.1", is_near(values[0], 1.8e-3) and is_near(values[1], 3.5e-3)
    linear = "FO-MAML's floor is linear in alpha, alpha L up to 0.05"
    return [
        Row(linear, SOURCE, "power 1", f"{power:.3f}", is_near(power, 1)),
        Row(claim, SOURCE, "0.0018, 0.0035", listing(values), good),
    ]


def vanishing(ax: Axes, quick: bool) -> list[Row]:
    """Stationary |grad F| of each method for growing batches."""
    sizes, iterations = ([2, 64], 80) if quick else ([1, 4, 16, 64], 800)
    problem = lopsided_problem()
    everything = logistic_tasks(problem)
    alpha = ALPHA_L / smoothness(problem)
    exact = grad_norm(everything, alpha)
    start = find_zero(direction(make_method("maml", alpha), everything), ORIGIN)
    limit = floor(make_method("fo_maml", alpha), everything, alpha, start)

    # FO-MAML must stay at its own floor; the others must fall below any floor.
    rows = []
    for name, title in TITLES.items():
        levels = []
        for size in sizes:
            tasks = logistic_tasks(problem, batch_sizes=BatchSizes(size, size, size), generator=torch.Generator())
            source = FiniteSumSource(tasks, {"w": start})
            seen = descend(source, make_method(name, alpha), iterations, BETA, size, exact, 10).seen
            levels.append(float(np.mean(seen[len(seen) // 5 :])))
        ax.loglog(sizes, levels, "s--" if name == "hf_maml" else "o-", label=title)
        power = slope(sizes, levels)
        if name == "fo_maml":
            claim, good = "FO-MAML's floor does not vanish", 0.8 * limit < levels[-1] < 1.5 * limit
            expected, measured = f"stays at {limit:.2g}, its floor at full batch", scientific(levels[-1])
        else:
            claim, good = f"{title}'s floor vanishes as B, D_in, D_o grow", power < -0.4 and levels[-1] < limit / 2
            expected = "power -1/2 or less in the batch size"
            measured = f"{power:.2f}; {scientific(levels[-1])} at the largest"
        rows.append(Row(claim, SOURCE, expected, measured, good))
    ax.set_xticks(sizes, labels=[str(size) for size in sizes])
    ax.axhline(limit, color="gray", linestyle=":", label="FO-MAML, full batch")
    label(ax, f"200 logistic tasks, alpha L = {ALPHA_L}", "B = D_in = D_o = D_h", "mean |grad F|")
    return rows


def lopsided_problem() -> Logistic:
    """200 tasks of 200 points; tasks that lean one way have larger features, so curvature and solution correlate."""
    problem = random_logistic(np.random.default_rng(1), 200, points=200)
    lean = (problem.y[..., None] * problem.x).mean(1)[:, 0]  # [T]
    return problem._replace(x=problem.x * torch.where(lean > 0, 1.5, 0.3)[:, None, None])
