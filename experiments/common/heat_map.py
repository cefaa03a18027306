"""A heat map of a two-dimensional task space: how good the policy is at each place, before and after adaptation."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from matplotlib.figure import Figure

from metarl import AdaptationCurve
from metarl.experiments.common.figures import new_figure
from metarl.task_params import column_names, join_columns
from metarl.types import TaskParams

SIZE = 11


class Grid(NamedTuple):
    """Tasks at the centres of the cells of a two-dimensional space."""

    names: tuple[str, str]  # of the horizontal and of the vertical axis
    centres: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
    tasks: TaskParams  # [cells, ...]; the vertical axis varies first


def make_grid(space: gymnasium.spaces.Dict, size: int = SIZE) -> Grid:
    """Tasks that cover the space: `size` along each real number, all values of each whole number.

    Raises:
        ValueError: unless the space has two numbers with bounds.
    """
    axes = {column: values for name, entry in space.items() for column, values in _axes(name, entry, size)}
    if len(axes) != 2 or any(len(values) == 0 for values in axes.values()):
        raise ValueError(f"heat_map needs a task space of two numbers with bounds, got {space}")
    (one, x), (other, y) = axes.items()
    columns = dict(zip((one, other), (places.ravel() for places in np.meshgrid(x, y, indexing="ij")), strict=True))
    tasks = {name: values.astype(space[name].dtype) for name, values in join_columns(columns).items()}
    return Grid((one, other), (x, y), tasks)


def _axes(name: str, entry: gymnasium.Space[Any], size: int) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """Each number of a parameter, and its values on the grid; none if it has no bounds."""
    columns = column_names(name, entry.shape or ())
    if isinstance(entry, Discrete | MultiDiscrete):
        ends = np.ravel(entry.start), np.ravel(entry.start + (entry.n if isinstance(entry, Discrete) else entry.nvec))
        for column, low, high in zip(columns, *ends, strict=True):
            yield column, np.arange(low, high).astype(np.float64)
        return
    if not isinstance(entry, Box) or not entry.is_bounded() or entry.dtype.kind != "f":
        yield from ((column, np.empty(0)) for column in columns)
        return
    for column, low, high in zip(columns, np.ravel(entry.low), np.ravel(entry.high), strict=True):
        yield column, float(low) + (float(high) - float(low)) * (np.arange(size) + 0.5) / size


def heat_map_figure(curve: AdaptationCurve, grid: Grid, title: str) -> Figure:
    """The mean score at each place of the grid, a picture for each step, all with the same colours."""
    x, y = grid.centres
    places = curve.scores.mean(0).reshape(len(x), len(y), -1)  # [x, y, steps + 1]
    figure = new_figure(2.6 * places.shape[2] + 0.9, 3.2)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, places.shape[2], squeeze=False, sharex=True, sharey=True)[0]
    cell = (x[1] - x[0]) / 2 if len(x) > 1 else 0.5, (y[1] - y[0]) / 2 if len(y) > 1 else 0.5
    extent = (x[0] - cell[0], x[-1] + cell[0], y[0] - cell[1], y[-1] + cell[1])
    for step, ax in enumerate(axes):
        image = ax.imshow(
            places[..., step].T,  # rows are the vertical axis
            origin="lower",
            extent=extent,
            vmin=places.min(),
            vmax=places.max(),
            aspect="auto",
        )
        ax.set_title(f"step {step}: {curve.mean[step]:.4g}", fontsize=9)
        ax.set_xlabel(grid.names[0])
    axes[0].set_ylabel(grid.names[1])
    figure.colorbar(image, ax=axes, label=curve.score_name.replace("_", " "))
    return figure
