"""A small grid with a hidden goal: discrete actions, one-hot or image observations.

    cell' = cell + (up, down, left, right or nothing), kept inside the grid        reward = -||cell' - goal||_1 / M

M = 2 (size - 1) is the distance between opposite corners, so rewards are in [-1, 0]. The goal is not observed: the
agent must find it by adapting. The reward is dense so that one policy-gradient step on 20 episodes shows the direction
of the goal; with a reward at the goal only, the first episodes of most tasks would carry no information. No state is
terminal: a good policy walks to the goal and stays there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor

from metarl.envs.base import check_rng
from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.envs.plots import PlanePlots
from metarl.envs.rendering import AGENT, GOAL, LIGHT, Canvas, Point
from metarl.errors import check_bool, check_int
from metarl.functional_env import Frame, FunctionalEnv, TaskTensors
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes


UP, DOWN, LEFT, RIGHT, STAY = range(5)
PIXELS = 40  # Stable-Baselines3's CNN needs at least 36
AGENT_VALUE, LINE_VALUE = 255, 64


class GridWorldEnv(FunctionalEnv):
    """The functions; the state is the cell (x, y) `[n, 2]`, (0, 0) at the bottom left, `task["goal"]` is `[n, 2]`.

    The observation is the one-hot vector of the cell `size * y + x`, or with `image` a grey picture `[1, 40, 40]` of
    the grid and the agent.
    """

    def __init__(self, size: int = 5, image: bool = False) -> None:
        if check_int("size", size, minimum=2) > PIXELS // 2:
            raise ValueError(f"size must be at most {PIXELS // 2}, two pixels of the picture for each cell, got {size}")
        check_bool("image", image)
        self.size, self.image = int(size), image
        self.observation_space = (
            Box(0, 255, (1, PIXELS, PIXELS), np.uint8) if image else Box(0.0, 1.0, (self.size**2,), np.float32)
        )
        self.action_space = Discrete(5)
        # The observation of every cell, by device: looking it up is ten times faster than drawing it.
        self._views = {torch.device("cpu"): _pictures(self.size) if image else torch.eye(self.size**2)}

    def show_on(self, device: torch.device | str) -> None:
        """Copy the observations to `device`; must be called before environments are stepped there."""
        there = torch.empty(0, device=device).device  # includes the number of the GPU
        self._views.setdefault(there, self._views[torch.device("cpu")].to(there))

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """The middle of the grid, `(size // 2, size // 2)`."""
        return torch.full(task["goal"].shape, float(self.size // 2), device=task["goal"].device)

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """One cell up (0), down (1), left (2) or right (3), or stay (4); walls block the move."""
        along_x = (action == RIGHT).to(state.dtype) - (action == LEFT).to(state.dtype)
        along_y = (action == UP).to(state.dtype) - (action == DOWN).to(state.dtype)
        return (state + torch.stack([along_x, along_y], dim=-1)).clamp(0, self.size - 1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """Minus the steps from the *new* cell to the goal, divided by those between opposite corners."""
        return -(next_state - task["goal"]).abs().sum(-1) / (2 * (self.size - 1))

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """The cell: float32 `[n, size^2]`, or uint8 `[n, 1, 40, 40]`."""
        cell = (self.size * state[:, 1] + state[:, 0]).long()
        return self._views[state.device].index_select(0, cell)

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        """The goal's cell in green, the agent in blue."""
        canvas = Canvas(-0.5, self.size - 0.5)
        for edge in np.arange(0.5, self.size - 1):
            canvas.line(Point(-0.5, edge), Point(self.size, edge), LIGHT)
            canvas.line(Point(edge, -0.5), Point(edge, self.size), LIGHT)
        x, y = task["goal"].tolist()
        canvas.box(Point(x - 0.4, y - 0.4), Point(x + 0.4, y + 0.4), GOAL)
        return canvas.disc(Point(*state.tolist()), 0.3, AGENT).frame()


def _pictures(size: int) -> Tensor:
    """The grid with the agent in each cell, uint8 `[size^2, 1, 40, 40]`: its cell white, edges grey, y upwards."""
    cell = torch.arange(PIXELS) * size // PIXELS  # column of each pixel; flipped, the row from the bottom
    edge = cell != cell.roll(1)
    lines = LINE_VALUE * (edge.flip(0)[:, None] | edge)  # [40, 40]
    cells = torch.arange(size**2)[:, None]
    agent = (cell.flip(0) == cells // size)[:, :, None] & (cell == cells % size)[:, None, :]  # [size^2, 40, 40]
    return lines.masked_fill(agent, AGENT_VALUE).to(torch.uint8)[:, None]


class GridWorld(PlanePlots, FunctionalDistribution):
    """Goals uniform over the cells other than the start: `task["goal"]` is (x, y), whole numbers below `size`.

    Args:
        size: cells along each side, 2 to 20.
        horizon: steps per episode; no episode ends earlier.
        image: observe a picture `[1, 40, 40]` instead of a one-hot vector.

    >>> GridWorld().sample(2, np.random.default_rng(0))["goal"]
    array([[1, 4],
           [1, 3]])
    """

    env: GridWorldEnv

    def __init__(self, size: int = 5, horizon: int = 20, image: bool = False) -> None:
        env = GridWorldEnv(size, image)
        super().__init__(env, gymnasium.spaces.Dict({"goal": MultiDiscrete([env.size, env.size])}), horizon)
        self.size, self.image = env.size, image

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """`num_tasks` goals, int64 `[T, 2]`."""
        check_int("num_tasks", num_tasks)
        start = (self.size + 1) * (self.size // 2)
        cell = check_rng(rng).integers(self.size**2 - 1, size=num_tasks)
        cell += cell >= start  # skips the start
        return {"goal": np.stack([cell % self.size, cell // self.size], axis=1)}

    def example(self) -> TaskParams:
        """The upper right corner of the default grid."""
        return {"goal": np.array([4, 4])}

    def env_on(self, device: torch.device) -> GridWorldEnv:
        """As `FunctionalDistribution.env_on`; the pictures lie on `device`."""
        self.env.show_on(device)
        return self.env

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The goal as a star, in the whole grid."""
        super().plot_task(ax, task)
        ax.set(xlim=(-0.5, self.size - 0.5), ylim=(-0.5, self.size - 0.5))

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """The path through the cells."""
        super().plot_episode(ax, self._cells(observations), **line_kwargs)

    def _cells(self, observations: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """(x, y) of each of `observations`, `[n, 2]`."""
        brightest = observations.reshape(len(observations), -1).argmax(1)  # the first of the agent's pixels
        if not self.image:
            return np.stack([brightest % self.size, brightest // self.size], axis=1)
        row, column = brightest // PIXELS, brightest % PIXELS
        return np.stack([column * self.size // PIXELS, (PIXELS - 1 - row) * self.size // PIXELS], axis=1)
