"""How a claim reports what it found: rows of a table, a figure, a remark."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from metarl.experiments.common.figures import new_figure

TITLES = {"maml": "MAML", "hf_maml": "HF-MAML", "fo_maml": "FO-MAML"}
"""The updates of Fallah et al. 2020, by name, as the paper calls them."""


class Row(NamedTuple):
    """One checked statement."""

    claim: str
    source: str
    expected: str
    measured: str
    holds: bool
    required: bool = True
    """Whether the script fails if it does not hold. False for times, and for statements known not to hold."""


class Findings(NamedTuple):
    """The result of a claim: the rows of its table, its picture, and a remark on both."""

    rows: list[Row]
    figure: Figure
    remarks: str


def scientific(value: float) -> str:
    """Three digits: `0.0142`, `1.42e-05`."""
    return f"{value:.3g}"


def listing(values: Sequence[float]) -> str:
    """Two digits each, separated by commas."""
    return ", ".join(f"{value:.2g}" for value in values)


def is_near(value: float, expected: float, tolerance: float = 0.05) -> bool:
    """Whether `value` agrees with a number given with two digits."""
    return abs(value - expected) <= tolerance * expected


def bounded(
    claim: str, source: str, ratios: Mapping[str, float], *, of: str = "measured / bound", required: bool = True
) -> Row:
    """A row on an upper bound, from the largest ratio on each problem."""
    measured = "; ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())
    good = max(ratios.values()) <= 1 + 1e-9  # rounding
    return Row(claim, source, f"{of} at most 1", measured, good, required)


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side, with a light grid."""
    figure = new_figure(4.6 * count, 3.7, dpi=130)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def label(ax: Axes, title: str, x: str, y: str, *, legend: bool = True) -> None:
    """Set the title, the axis labels and, with `legend`, a small legend."""
    ax.set_title(title, fontsize=10)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel=x, ylabel=y)
    if legend:
        ax.legend(fontsize=8)
