"""Pictures of adaptation curves, with matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metarl.files import write_atomically
from metarl.statistics import Interval

if TYPE_CHECKING:
    from metarl.adaptation_curve import AdaptationCurve


def draw_curve(ax: Axes, mean: Sequence[float], ci95: Sequence[Interval | None], label: str | None = None) -> None:
    """A line through the means after each step, and a band of their intervals, into `ax`."""
    steps = range(len(mean))
    low, high = zip(*[(math.nan, math.nan) if ends is None else ends for ends in ci95], strict=True)
    (line,) = ax.plot(steps, mean, markersize=5, label=label, marker="o" if len(mean) == 1 else None)
    ax.fill_between(steps, low, high, alpha=0.2, color=line.get_color())


def save_curve(path: Path, curve: "AdaptationCurve", label: str | None) -> None:
    """A picture of one curve, in the format of the path's ending."""
    figure = Figure(figsize=(5.5, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.set_prop_cycle(marker=["o"])
    draw_curve(ax, curve.mean, curve.ci95, label)
    seeds, tasks = curve.scores.shape[:2]
    over = f"{tasks} tasks" if seeds == 1 else f"{seeds} seeds and {tasks} tasks"
    ax.set(xlabel="gradient steps", ylabel=curve.score_name.replace("_", " "), xticks=range(curve.steps + 1))
    ax.set_title(f"mean and 95 % interval over {over}", fontsize=10)
    ax.grid(alpha=0.3)
    if label is not None:
        ax.legend()
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix.removeprefix(".") or "png"))
