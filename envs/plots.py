"""What the distributions' plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_goal_place(ax: Axes, goal: npt.NDArray[Any]) -> None:
    """A goal (x, y) as a star, on axes of equal scale."""
    ax.plot(*goal[:, None], marker="*", markersize=12, color="tab:green", linestyle="none")
    ax.set_aspect("equal")


def plot_goal_speed(ax: Axes, goal: float) -> None:
    """A goal velocity as a dashed line over time."""
    ax.axhline(goal, color="tab:green", linestyle="--")
