"""The page's picture: where the estimators are, and what they cost."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from metarl.experiments.reports.certify.estimators import OTHER
from metarl.experiments.reports.certify.page import grouped
from metarl.experiments.reports.certify.problems import OBJECTIVE, PRODUCT


def picture(results: Mapping[str, Any]) -> Figure:
    """The bandit's expectations on the left; bias against standard deviation on the tabular problem on the right."""
    figure = Figure(figsize=(13.0, 4.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    forest(left, [pair for pair in grouped(results["bandit"]) if pair[0]["update"] not in OTHER])
    scatter(right, [pair for pair in grouped(results["mdp"]) if pair[0]["update"] not in OTHER])
    return figure


def name_of(row: Mapping[str, Any], surrogates: str) -> str:
    """A short name for a picture."""
    parts = [row["label"].replace("`", ""), "" if surrogates == "all" else surrogates, row["hessian_data"]]
    return ", ".join(part for part in parts if part)


def forest(ax: Axes, rows: list[tuple[dict[str, Any], str]]) -> None:
    """Expectations with four standard errors, and the two targets as lines."""
    for height, (row, _) in enumerate(rows):
        colour = "tab:red" if row["claim"] is None else "tab:green"
        ax.errorbar(row["expectation"][0], -height, xerr=4 * row["stderr"][0], fmt="o", color=colour, markersize=4)
    targets = rows[0][0]["targets"]
    for name, style in ((PRODUCT, "--"), (OBJECTIVE, ":")):
        ax.axvline(targets[name][0], linestyle=style, color="black", linewidth=1, label=name)
    ax.set_yticks([-height for height in range(len(rows))], [name_of(*pair) for pair in rows], fontsize=7)
    ax.set(xlabel="meta-gradient ± 4 standard errors")
    ax.set_title("Gaussian bandit (green: documented as unbiased)", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)


def scatter(ax: Axes, rows: list[tuple[dict[str, Any], str]]) -> None:
    """Exact relative error to the sampled objective against the deviation over inner data; equal points once."""
    points: dict[tuple[float, float], str] = {}
    for row, surrogates in rows:
        if row["exact_std"] is not None:
            place = round(row["exact_std"], 6), max(round(row["relative_error"][OBJECTIVE], 6), 1e-4)
            points.setdefault(place, name_of(row, surrogates))
    for number, (place, name) in enumerate(points.items()):
        ax.plot(*place, "osD^v"[number % 5], markersize=6, label=name, linestyle="none", alpha=0.8)
    ax.set(xscale="log", yscale="log", xlabel="standard deviation over inner data")
    ax.set_xticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("relative error to the sampled objective\n(0 is drawn at 1e-4)", fontsize=9)
    ax.set_title("Two states, two actions, three steps: exact", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
