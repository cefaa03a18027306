"""The picture of a name: held-out returns during training, and the adaptation curves at the end."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarl.experiments.common.figures import new_figure
from metarl.experiments.compare.pictures import draw, style
from metarl.experiments.reports.reproduce.rows import CommittedRow, untrained


def draw_rows(name: str, rows: Sequence[CommittedRow]) -> Figure:
    """Two panels with the same colours: against environment steps of training, and against gradient steps."""
    figure = new_figure(11.0, 4.2)
    figure.suptitle(f"{name}: return on held-out tasks", fontsize=10)
    training, adaptation = figure.subplots(1, 2)
    for number, row in enumerate(rows):
        color, dashes = style(number)
        for seed in range(len(row.results)):
            points = list(row.curve(seed).values())
            draw(training, points, color=color, linestyle=dashes, linewidth=0.6, alpha=0.5)
        draw(training, row.mean_curve(), color=color, linestyle=dashes, linewidth=1.8)
        draw_adaptation(adaptation, row, color, dashes)
    if first := untrained(rows):
        draw_adaptation(adaptation, first, "0.6", "-")
    training.set(xlabel="environment steps of training", ylabel="return after the trained steps")
    episodes = " (rl2: episodes)" if any(row.first.axis == "episode" for row in rows) else ""
    adaptation.set(xlabel=f"gradient steps{episodes}", ylabel="return")
    adaptation.xaxis.get_major_locator().set_params(integer=True)
    for ax in (training, adaptation):
        ax.grid(alpha=0.3)
    labels = adaptation.get_legend_handles_labels()
    figure.legend(*labels, loc="outside right center", fontsize=8, handlelength=3)
    return figure


def draw_adaptation(ax: Axes, row: CommittedRow, color: str, dashes: str) -> None:
    """The mean return at every point with its interval, or with the lines of both seeds if there are two.

    The interval over two seeds has a t quantile of 12.7 and would hide all other rows; the table has it. Budgets of PPO
    are no gradient steps, and are in the table alone.
    """
    if not row.finite or row.first.axis == "budget":
        return
    points = row.first.points
    ax.plot(points, row.means, color=color, linestyle=dashes, marker="o", markersize=4, label=row.label)
    if len(row.results) == 2:
        for returns in row.scores.mean(1):
            ax.plot(points, returns, color=color, linestyle=dashes, linewidth=0.6, alpha=0.5)
        return
    low, high = zip(*[ends or (math.nan, math.nan) for ends in row.intervals], strict=True)
    ax.fill_between(points, low, high, color=color, alpha=0.15, linewidth=0)
