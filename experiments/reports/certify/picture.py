"""The page's picture: bias and standard deviation of the estimators."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from metarl.experiments.common.figures import new_figure
from metarl.experiments.reports.certify.certificates import Certificate
from metarl.experiments.reports.certify.estimators import OTHER
from metarl.experiments.reports.certify.page import merge_equal
from metarl.experiments.reports.certify.problems import OBJECTIVE, PRODUCT


def draw_picture(results: Mapping[str, Any]) -> Figure:
    """The bandit's expectations on the left; bias against standard deviation on the tabular problem on the right."""
    figure = new_figure(13.0, 4.6)
    for draw, ax, problem in zip((forest, scatter), figure.subplots(1, 2), ("bandit", "mdp"), strict=True):
        draw(ax, [row for row in merge_equal(results[problem]) if row["update"] not in OTHER])
        ax.grid(alpha=0.3)
    return figure


def short_name(row: Certificate) -> str:
    """A short name for a picture."""
    parts = [row["label"].replace("`", ""), row["surrogate"].replace("all", ""), row["hessian_data"]]
    return ", ".join(part for part in parts if part)


def forest(ax: Axes, rows: Sequence[Certificate]) -> None:
    """Expectations with four standard errors, and the two targets as lines."""
    for height, row in enumerate(rows):
        colour = "tab:red" if row["claim"] is None else "tab:green"
        ax.errorbar(row["expectation"][0], -height, xerr=4 * row["stderr"][0], fmt="o", color=colour, markersize=4)
    for name, style in ((PRODUCT, "--"), (OBJECTIVE, ":")):
        ax.axvline(rows[0]["targets"][name][0], linestyle=style, color="black", linewidth=1, label=name)
    ax.set_yticks([-height for height in range(len(rows))], [short_name(row) for row in rows], fontsize=7)
    ax.set(xlabel="meta-gradient ± 4 standard errors")
    ax.set_title("Gaussian bandit (green: documented as unbiased)", fontsize=10)
    ax.legend(fontsize=7)


def scatter(ax: Axes, rows: Sequence[Certificate]) -> None:
    """Exact relative error to the sampled objective against the deviation over inner data; equal points once."""
    points: dict[tuple[float, float], str] = {}
    for row in sorted(rows, key=lambda row: row["update"] != "maml"):  # whose name equal points get
        if row["exact_std"] is not None:
            place = round(row["exact_std"], 6), max(round(row["relative_error"][OBJECTIVE], 6), 1e-4)
            points.setdefault(place, short_name(row))
    for number, (place, name) in enumerate(points.items()):
        ax.plot(*place, "osD^v"[number % 5], markersize=6, label=name, linestyle="none", alpha=0.8)
    ax.set(xscale="log", yscale="log", xlabel="standard deviation over inner data")
    ax.set_xticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("relative error to the sampled objective\n(0 is drawn at 1e-4)", fontsize=9)
    ax.set_title("Two states, two actions, three steps: exact", fontsize=10)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))


def draw_slopes(rows: Sequence[Certificate]) -> Figure:
    """Standard deviation and bias against the number of inner trajectories, for each problem."""
    figure = new_figure(11.0, 4.0)
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    for ax, problem in zip(figure.subplots(1, len(problems)), problems, strict=True):
        own = [row for row in rows if row["problem"] == problem]
        for number, update in enumerate(dict.fromkeys(row["update"] for row in own)):
            group = [row for row in own if row["update"] == update]
            n, colour = [row["n"] for row in group], f"C{number}"
            ax.plot(n, [row["std"] for row in group], "o-", color=colour, label=f"{update}: standard deviation")
            if all(row["bias"] > 1e-9 for row in group):
                ax.plot(n, [row["bias"] for row in group], "s--", color=colour, label=f"{update}: bias")
        ax.set(xscale="log", yscale="log", xlabel="inner trajectories", title=problem)
        ax.set_xticks(n, [str(number) for number in n])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return figure
