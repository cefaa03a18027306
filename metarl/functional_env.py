"""Environments written once as pure torch functions.

The single Gymnasium environment, the vector environment and rollouts all call `functional_step`, so they agree bit for
bit. The names are those of `gymnasium.experimental.functional.FuncEnv`; the argument `task` holds the parameters that
vary between tasks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metarl.types import TaskParams

TaskTensors: TypeAlias = Mapping[str, Tensor]
"""Parameters of n environments: every tensor is `[n, ...]`."""

Frame: TypeAlias = npt.NDArray[np.uint8]
"""A picture, `[height, width, 3]`."""

UNIFORM_LOW = 2.0**-25
"""The smallest uniform number: its logarithm is finite."""


class FunctionalEnv(ABC):
    """A family of environments as pure functions over a leading dimension n; never changes its arguments.

    The state is one float32 tensor `[n, S]`. Actions arrive as `[n, ...]`, float32 for a Box and int64 for a Discrete
    space, not clipped: the environment decides what to do with actions outside the Box.

    Random outcomes are functions of `noise`, float32 numbers uniform in (0, 1): `initial_noise` numbers for each first
    state, `transition_noise` for each step (`metarl.envs.functional.normal` turns them into standard normal numbers).
    So episodes can be recorded, and a task's episodes are the same in any batch.
    """

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    initial_noise: int = 0
    transition_noise: int = 0

    @abstractmethod
    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """First states, `[n, S]`; `noise` is `[n, initial_noise]`."""

    @abstractmethod
    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """Next states, `[n, S]`; `noise` is `[n, transition_noise]`."""

    @abstractmethod
    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """Rewards of the transitions, `[n]`, float32."""

    @abstractmethod
    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """Observations of the agent, `[n, ...]`, in the type of `observation_space`."""

    def terminal(self, state: Tensor, task: TaskTensors) -> Tensor:
        """Whether a step to `state` ends the episode, bool `[n]`; by default never. Not called for first states."""
        return torch.zeros(len(state), dtype=torch.bool, device=state.device)

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        """A picture of ONE environment: `state` is `[S]`, the tensors of `task` are without n.

        Raises:
            ValueError: the environment does not define `render`.
        """
        raise ValueError(f"{type(self).__name__} must define render to be drawn")


class Step(NamedTuple):
    """The result of one step of n environments."""

    state: Tensor  # [n, S]
    reward: Tensor  # [n]
    terminal: Tensor  # [n], bool


def functional_step(
    env: FunctionalEnv, task: TaskTensors, state: Tensor, action: Tensor, noise: Tensor, running: Tensor | None = None
) -> Step:
    """One step of n environments.

    Args:
        env: the functions.
        task: parameters, `[n, ...]`.
        state: `[n, S]`.
        action: `[n, ...]`.
        noise: `[n, transition_noise]`.
        running: bool `[n]`; the others have ended and keep their state. By default all run.
    """
    proposed = env.transition(state, action, task, noise)
    reward = env.reward(state, action, proposed, task)
    after = proposed if running is None else torch.where(running[:, None], proposed, state)
    return Step(after, reward, env.terminal(after, task))


class FunctionalEnvs(NamedTuple):
    """N = T x E environments as functions, task-major."""

    env: FunctionalEnv
    task: TaskTensors  # [N, ...]


@runtime_checkable
class FunctionalTaskDistribution(Protocol):
    """A task distribution whose environments are functions: rollouts need no vector environment."""

    def make_functional(
        self, task: TaskParams, episodes: int, device: torch.device | str = "cpu"
    ) -> FunctionalEnvs | None:
        """The environments of `make_vec` as functions; `None` if `make_vec` behaves differently."""


def repeat_tasks(task: TaskParams, episodes: int, device: torch.device | str) -> TaskTensors:
    """Parameters `[T, ...]` as tensors `[T x episodes, ...]`, task-major."""
    return {k: torch.tensor(v, device=device).repeat_interleave(episodes, 0) for k, v in task.items()}
