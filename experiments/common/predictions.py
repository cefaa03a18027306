"""The uncertainty of particles on sinusoids: a picture of their predictions, and how often the band holds the truth."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from metarl import MetaLearner
from metarl.derivatives import over_tasks
from metarl.experiments.common.figures import new_figure
from metarl.inner import adapt_stepwise
from metarl.random import Stream, stream_generator
from metarl.supervised.particles import Particles, ParticleTasks
from metarl.supervised.sinusoid import AMPLITUDES, INPUTS, PHASES, Sinusoids
from metarl.types import Batch

WIDTH = 2.0
"""Half the band's width, in standard deviations of the particles (n - 1 in the denominator)."""


class Shown(NamedTuple):
    """New sinusoids, and the particles' predictions on a grid of inputs before the first step and after each."""

    support: Batch
    x: Tensor  # [n]
    truth: Tensor  # [T, n]
    predictions: list[Tensor]  # [T, M, n] each

    def inside(self, step: int) -> Tensor:
        """Where the truth is inside the band, `[T, n]`."""
        mean, half = band(self.predictions[step])
        return (self.truth - mean).abs() <= half


def band(predictions: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of predictions `[T, M, n]` and half the band's width, `[T, n]` each; zero for a single particle."""
    mean = predictions.mean(1)
    many = predictions.shape[1] > 1
    return mean, WIDTH * predictions.std(1) if many else torch.zeros_like(mean)


def predict(learner: MetaLearner, source: Particles, num_tasks: int, steps: int, seed: int) -> Shown:
    """Predictions on 101 inputs in new tasks."""
    sinusoids = source.source
    assert isinstance(sinusoids, Sinusoids)
    rng = stream_generator(seed, Stream.HELD_OUT_TASKS)
    amplitude, phase = (rng.uniform(*bounds, (num_tasks, 1)) for bounds in (AMPLITUDES, PHASES))
    tasks = ParticleTasks(sinusoids.tasks(amplitude, phase, rng), source.particles, source.score)
    leaf = next(iter(learner.params.values()))
    x = torch.linspace(*INPUTS, 101).to(leaf)
    grid = {"x": x[:, None].expand(num_tasks, -1, -1)}
    truth = torch.as_tensor(amplitude).to(leaf) * torch.sin(x + torch.as_tensor(phase).to(leaf))
    with learner.engine.current():
        path = adapt_stepwise(learner.params, tasks, learner.rules([None] * steps))
        predictions = [over_tasks("predictions", source.predict, theta, grid) for theta in path]
        support = tasks.draw({}, "inner")
    return Shown(support, x, truth, predictions)


def coverage(learner: MetaLearner, source: Particles, num_tasks: int, steps: int, seed: int) -> list[float]:
    """The share of all inputs and tasks where the band holds the truth, before the first step and after each.

    A normal distribution has 95 % inside two of its own standard deviations.
    """
    shown = predict(learner, source, num_tasks, steps, seed)
    return [float(shown.inside(step).double().mean()) for step in range(steps + 1)]


def prediction_figure(
    learner: MetaLearner, source: Particles, steps: Sequence[int], seed: int, rows: int = 3
) -> Figure:
    """Each row a new sinusoid, each column a number of inner steps: truth, points, mean and band of the particles."""
    shown = predict(learner, source, rows, max(steps), seed)
    figure = new_figure(3.0 * len(steps), 2.2 * rows, dpi=100)
    axes = figure.subplots(rows, len(steps), squeeze=False, sharex=True, sharey="row")
    for column, step in enumerate(steps):
        for row in range(rows):
            _plot_task(axes[row][column], shown, row, step)
        title = "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"
        axes[0][column].set_title(title, fontsize=10)
    lines = axes[0][0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _plot_task(ax: Axes, shown: Shown, row: int, step: int) -> None:
    predictions = shown.predictions[step]
    mean, half = (values[row].cpu().numpy() for values in band(predictions))
    x = shown.x.cpu().numpy()
    ax.fill_between(x, mean - half, mean + half, color="tab:blue", alpha=0.2, label=f"mean ± {WIDTH:g} std")
    for particle in predictions[row].cpu().numpy():
        ax.plot(x, particle, color="tab:blue", alpha=0.3, linewidth=0.7)
    ax.plot(x, mean, color="tab:blue", label="mean of the particles")
    ax.plot(x, shown.truth[row].cpu().numpy(), color="black", linestyle="--", linewidth=1, label="truth")
    points = (np.asarray(shown.support[key][row].cpu()).ravel() for key in ("x", "y"))
    ax.plot(*points, "o", color="tab:red", markersize=4, label="support points")
    ax.grid(alpha=0.3)
