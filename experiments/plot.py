"""Plot any metric of runs against any other: iterations, seconds, or the counts of the theorems.

    metarl plot runs/a runs/b --y theory/grad_norm --x oracle/samples --log-x --log-y --out plot.png

Metrics are those of `metrics.jsonl`, and `time/seconds`, the total time of all iterations so far. A run has a point for
each iteration with both metrics. A value that is not finite, or not positive on a logarithmic axis, leaves a gap.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metarl.errors import did_you_mean
from metarl.experiments.common import cli
from metarl.experiments.common.figures import new_figure
from metarl.experiments.common.options import check_distinct
from metarl.files import write_atomically
from metarl.logging import Line, parse_line

Points = list[tuple[float, float]]
"""The curve of a run: x and y of its iterations."""


@dataclass(frozen=True)
class Arguments:
    """Settings of a plot."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of training runs."""
    y: str
    """Metric on the y-axis, for example theory/grad_norm."""
    x: str = "iteration"
    """Metric on the x-axis: iteration, time/seconds, oracle/samples, oracle/gradients, ..."""
    log_x: bool = False
    """Use a logarithmic x-axis."""
    log_y: bool = False
    """Use a logarithmic y-axis."""
    out: Path = Path("plot.png")
    """Picture to write. Its ending gives the format."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl plot", __doc__)
    curves = cli.prepare(lambda: prepare(given))
    figure = plot(curves, given.x, given.y, log_x=given.log_x, log_y=given.log_y)
    kind = given.out.suffix[1:]
    write_atomically(given.out, lambda file: figure.savefig(file, format=kind))
    print(f"{given.out}: {', '.join(f'{label} ({len(points)} points)' for label, points in curves.items())}")


def prepare(given: Arguments) -> dict[str, Points]:
    """The curve of each run, by its label.

    Raises:
        ValueError: naming the argument that cannot work.
    """
    check_distinct("runs", [str(run) for run in given.runs])
    kinds = sorted(FigureCanvasAgg.get_supported_filetypes())
    if given.out.suffix[1:] not in kinds:
        near = did_you_mean(given.out.suffix[1:], kinds)
        raise ValueError(f"out must end with one of {kinds}, got {given.out}{near}")
    cli.check_output("out", given.out)
    lines = {run: read(run) for run in given.runs}
    curves = {label: points(lines[run], run, given.x, given.y) for label, run in labels(given.runs).items()}
    for axis, (name, logarithmic) in enumerate((("x", given.log_x), ("y", given.log_y))):
        if logarithmic and not any(point[axis] > 0 for curve in curves.values() for point in curve):
            raise ValueError(f"log_{name} needs positive values, but {getattr(given, name)!r} has none")
    return curves


def read(run: Path) -> list[Line]:
    """The metrics of every iteration of a run, with `time/seconds`.

    Raises:
        ValueError: when the folder is not a run's, or a line of the file is not one of metrics.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        near = did_you_mean(run.name, [beside.parent.name for beside in run.parent.glob("*/metrics.jsonl")])
        raise ValueError(f"run must be a folder with metrics, but there is no {path}{near}")
    lines: list[Line] = []
    seconds = 0.0
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], 1):
        if (line := parse_line(text)) is None:
            found = f"line {number} of {path} is {text!r:.60}"
            raise ValueError(f"run must have a line of metrics per iteration, but {found}")
        if lines and (line.get("iteration") or 0) <= (lines[-1].get("iteration") or 0):
            found = f"line {number} of {path} is {line.get('iteration')} after {lines[-1].get('iteration')}"
            raise ValueError(f"run must have each iteration once and in order, but {found}")
        seconds += line.get("time/iteration_seconds") or 0.0
        lines.append({**line, "time/seconds": seconds})
    if not lines:
        raise ValueError(f"run must have finished an iteration, but {path} is empty")
    return lines


def points(lines: Iterable[Line], run: Path, x: str, y: str) -> Points:
    """x and y of every iteration that has both, in order.

    Raises:
        ValueError: when the run never logged one of them, naming the nearest metric it has; or never both at once.
    """
    lines = list(lines)
    known = dict.fromkeys(key for line in lines for key in line)
    for argument, metric in (("x", x), ("y", y)):
        if metric not in known:
            near = did_you_mean(metric, known) or f"; it has {', '.join(known)}"
            raise ValueError(f"{argument} must be a metric of {run}, got {metric!r}{near}")
    pairs = [(line[x], line[y]) for line in lines if x in line and y in line]
    found = [(math.nan if a is None else a, math.nan if b is None else b) for a, b in pairs]
    if not found:
        raise ValueError(f"x and y must be logged in the same iterations, but {x!r} and {y!r} never are in {run}")
    return found


def labels(runs: Iterable[Path]) -> dict[str, Path]:
    """Runs by the names of their folders, or by their paths if two have the same name."""
    runs = list(runs)
    names = {run: run.resolve().name for run in runs}
    unique = len(set(names.values())) == len(runs)
    return {names[run] if unique else str(run): run for run in runs}


def plot(curves: Mapping[str, Points], x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> Figure:
    """A line for each run."""
    figure = new_figure(6.0, 4.0)
    ax = figure.subplots()
    for label, curve in curves.items():
        xs, ys = zip(*curve, strict=True)
        ax.plot(xs, ys, label=label, linewidth=1.2, marker="." if len(curve) <= 40 else "")
    for logarithmic, set_scale in ((log_x, ax.set_xscale), (log_y, ax.set_yscale)):
        if logarithmic:
            set_scale("log", nonpositive="mask")
    ax.set(xlabel=x, ylabel=y)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
