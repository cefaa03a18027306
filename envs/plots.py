"""What the distributions' plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy.typing as npt

from metarl.task_params import check_task
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PlanePlots:
    """The plots of distributions whose goals are places and whose observations begin with a place (x, y)."""

    space: gymnasium.spaces.Dict

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The goal as a star, on axes of equal scale."""
        ax.plot(
            *check_task(self.space, task)["goal"][:, None],
            marker="*",
            markersize=12,
            color="tab:green",
            linestyle="none",
        )
        ax.set_aspect("equal")

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """The path in the plane."""
        ax.plot(observations[:, 0], observations[:, 1], **line_kwargs)


def plot_goal_speed(ax: Axes, goal: float) -> None:
    """A goal velocity as a dashed line over time."""
    ax.axhline(goal, color="tab:green", linestyle="--")
