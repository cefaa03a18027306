"""Pictures of a comparison: curves of training, adaptation curves, and heat maps of a sweep."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarl.experiments.common.figures import new_figure
from metarl.experiments.compare.results import AXES, RowResult

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#000000", "#e69f00")
"""Colours that colour-blind people can tell apart (Okabe and Ito, 2008), the yellow darkened."""

DASHES = ("-", "--", ":", "-.")


def style(number: int) -> tuple[str, str]:
    """The colour and the dashes of a row."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def metric(row: RowResult) -> str:
    """The metric of a row's curves: the held-out score at the point that it is trained for."""
    return f"eval/return_{row.axis}_{row.points[row.trained]:g}"


def mean_curve(row: RowResult, x: str) -> list[tuple[float, float]]:
    """The mean curve over seeds, at the evaluations that all of them have."""
    curves = [row.curve(seed, x, metric(row)) for seed in range(len(row.seeds))]
    common = [k for k in curves[0] if all(k in curve for curve in curves)]
    ends = [np.mean([curve[k] for curve in curves], 0) for k in common]
    return [(float(a), float(b)) for a, b in ends]


def curves_figure(rows: Sequence[RowResult], title: str) -> Figure:
    """Held-out scores during training, against everything that training spends: a thin line for each seed."""
    axes = {x: name for x, name in AXES.items() if any(mean_curve(row, x) for row in rows)}
    figure = new_figure(11.0, 6.2)
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(2, 3).ravel()  # five axes, and a place for the legend
    for ax in panels[len(axes) :]:
        ax.set_axis_off()
    for ax, (x, name) in zip(panels, axes.items(), strict=False):
        for number, row in enumerate(rows):
            color, dashes = style(number)
            for seed in range(len(row.seeds)):
                draw(
                    ax,
                    list(row.curve(seed, x, metric(row)).values()),
                    color=color,
                    linestyle=dashes,
                    linewidth=0.6,
                    alpha=0.5,
                )
            draw(ax, mean_curve(row, x), color=color, linestyle=dashes, linewidth=1.8, label=row.label)
        ax.set(xlabel=name, ylabel="return after adaptation")
        ax.grid(alpha=0.3)
    if axes:
        panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", fontsize=9)
    return figure


def draw(ax: Axes, points: Sequence[tuple[float, float]], **how: Any) -> None:
    """A line through points; a single one gets a marker."""
    if points:
        ax.plot(*zip(*points, strict=True), marker="." if len(points) < 3 else "", **how)


def adaptation_curves(rows: Sequence[RowResult], title: str) -> Figure:
    """The mean score of each row, with its interval: after each gradient step, and against environment steps."""
    figure = new_figure(9.6, 3.8)
    figure.suptitle(title, fontsize=10)
    by_step, by_env_steps = figure.subplots(1, 2, sharey=True)
    for number, row in enumerate(rows):
        if row.scores is not None:
            if row.axis == "step":
                draw_band(by_step, row.points, row, number)
            draw_band(by_env_steps, row.env_steps, row, number)
    by_step.set(xlabel="gradient steps", ylabel="return")
    by_step.xaxis.get_major_locator().set_params(integer=True)
    by_env_steps.set_xlabel("environment steps of adaptation, per task")
    for ax in (by_step, by_env_steps):
        ax.grid(alpha=0.3)
    if by_env_steps.lines:
        figure.legend(*by_env_steps.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def draw_band(ax: Axes, xs: Sequence[float], row: RowResult, number: int) -> None:
    """A row's mean scores with their 95 % intervals."""
    color, dashes = style(number)
    means, intervals = row.means, row.intervals
    low, high = zip(*[(math.nan, math.nan) if ends is None else ends for ends in intervals], strict=True)
    ax.plot(xs, means, color=color, linestyle=dashes, marker="o", markersize=4, label=row.label)
    ax.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)


def heat_map(rows: Sequence[RowResult], title: str) -> Figure:
    """The mean score after the trained steps over the grid, a map for each group; a cross: a run diverged."""
    groups = list(dict.fromkeys(row.group for row in rows))
    finite = [float(row.final.mean()) for row in rows if row.scores is not None]
    limits = (min(finite), max(finite)) if finite else (0.0, 1.0)
    names = list(rows[0].cell)
    values = {name: list(dict.fromkeys(row.cell[name] for row in rows)) for name in names}
    width, height = (len(values[names[-1]]), len(values[names[0]]) if len(names) > 1 else 1)
    figure = new_figure(len(groups) * max(2.4, 0.75 * width + 1) + 1.2, max(1.9, 0.55 * height + 1.3))
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for ax, group in zip(axes, groups, strict=True):
        own = [row for row in rows if row.group == group]
        table = np.full((height, width), math.nan)
        for row in own:
            y = values[names[0]].index(row.cell[names[0]]) if len(names) > 1 else 0
            x = values[names[-1]].index(row.cell[names[-1]])
            if row.scores is None:
                ax.plot(x, y, "x", color="tab:red", markersize=10, markeredgewidth=2)
                continue
            table[y, x] = score = float(row.final.mean())
            light = score > limits[0] + 0.6 * (limits[1] - limits[0])
            ax.text(x, y, f"{score:.3g}", ha="center", va="center", fontsize=8, color="black" if light else "white")
        image = ax.imshow(table, cmap="viridis", vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
        ax.set_xticks(range(width), values[names[-1]], fontsize=8)
        ax.set_yticks(range(height), values[names[0]] if len(names) > 1 else [""], fontsize=8)
        ax.set_xlabel(names[-1], fontsize=9)
        ax.set_ylabel(names[0] if len(names) > 1 else "", fontsize=9)
        ax.set_title(f"{group}: after {own[0].trained} step{'s' * (own[0].trained != 1)}", fontsize=9)
    figure.colorbar(image, ax=axes, label="return")
    return figure
