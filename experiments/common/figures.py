"""Pictures of adaptation: the score after each gradient step, and the policy's trajectories."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metarl.adaptation_curve import AdaptationCurve
from metarl.curve_plots import draw_curve
from metarl.envs.base import EnvDistribution
from metarl.evaluation import evaluate
from metarl.files import write_atomically
from metarl.random import Stream, stream_generator
from metarl.rl import ReinforcementLearning
from metarl.types import Params, Rule, TaskDistribution, TaskParams
from metarl.wrappers import RecordDraws, RecordedDraw


class Curve(NamedTuple):
    """A mean return and its 95 % interval after each gradient step."""

    mean: Sequence[float]
    ci95: Sequence[tuple[float, float] | None]


def adaptation_figure(curves: Mapping[str, Curve | AdaptationCurve], title: str, score: str = "return") -> Figure:
    """The mean score on held-out tasks after each gradient step: a line with its 95 % band for each of `curves`."""
    beside = len(curves) > 3  # too many for a legend in a corner
    figure = new_figure(7.0 if beside else 5.5, 3.8)
    ax = figure.subplots()
    ax.set_prop_cycle(
        cycler(linestyle=["-", "--", ":"], marker=["o", "s", "^"]) * cycler(color=matplotlib.color_sequences["tab10"])
    )
    for label, curve in curves.items():
        steps = range(len(curve.mean))
        draw_curve(ax, curve.mean, curve.ci95, label)
    ax.set(xlabel="gradient steps", ylabel=score.replace("_", " "), xticks=list(steps))
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(**({"loc": "center left", "bbox_to_anchor": (1.02, 0.5)} if beside else {}))
    return figure


def trajectory_figure(
    source: ReinforcementLearning, params: Params, rules: Sequence[Rule], num_tasks: int, seed: int
) -> Figure:
    """The policy's trajectories before adaptation and after each step: a row per held-out task, a column per step."""
    rng = stream_generator(seed, Stream.TRAJECTORIES)
    oracle = source.sample(num_tasks, rng)
    recording = RecordDraws(oracle)
    curve = evaluate(params, recording, rules)
    drawn = [draw for draw in recording.draws if draw.role == "outer"]

    figure = new_figure(2.4 * len(drawn), 2.4 * num_tasks)
    figure.suptitle("each row a held-out task; mean return above each picture", fontsize=10)
    axes = figure.subplots(num_tasks, len(drawn), squeeze=False, sharex=True, sharey=True)
    for row in range(num_tasks):
        task = {key: value[row] for key, value in oracle.task.items()}
        for step, draw in enumerate(drawn):
            ax = axes[row][step]
            _plot_episodes(source.distribution, ax, task, draw, row)
            ax.set_title(f"step {step}: {curve.scores[0, row, step]:.1f}", fontsize=9)
    # what the lines are, if the distribution gave them labels
    handles, labels = axes[0][0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    if named:
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize=8)
    return figure


def _plot_episodes(
    tasks: TaskDistribution, ax: Axes, task: TaskParams, draw: RecordedDraw, row: int, shown: int = 5
) -> None:
    assert isinstance(tasks, EnvDistribution)
    obs, mask = draw.batch["obs"][row].cpu().numpy(), draw.batch["mask"][row].cpu().numpy()
    ax.set_prop_cycle(color=["tab:blue"])  # of lines that the distribution gives no colour
    for episode in range(min(shown, len(obs))):
        tasks.plot_episode(ax, obs[episode][mask[episode] > 0], alpha=0.5, linewidth=1)
    tasks.plot_task(ax, task)


def check_format(name: str, path: Path) -> None:
    """Check that a picture can be written in the format of the path's ending.

    Raises:
        ValueError: otherwise, naming the argument.
    """
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise ValueError(f"{name} must end in one of {sorted(formats)}, got {str(path)!r}")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture in the format of the path's ending, atomically."""
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix.removeprefix(".")))


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """An empty figure that needs no window and no global pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
    FigureCanvasAgg(figure)
    return figure
