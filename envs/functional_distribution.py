"""Task distributions over functional environments."""

from __future__ import annotations

import gymnasium
import torch

from metarl.devices import pick_device
from metarl.envs.base import EnvDistribution
from metarl.envs.functional import FunctionalGymEnv
from metarl.envs.vector import TorchVectorEnv
from metarl.errors import check_int
from metarl.functional_env import FunctionalEnv, FunctionalEnvs, repeat_tasks
from metarl.task_params import check_task, check_tasks
from metarl.types import TaskParams


class FunctionalDistribution(EnvDistribution):
    """A distribution over a `FunctionalEnv`.

    The constructor of a subclass passes its environment and the space of its parameters.

    Args:
        env: the functions all environments share.
        space: the space of ONE task's parameters.
        horizon: steps per episode, at most.
    """

    def __init__(self, env: FunctionalEnv, space: gymnasium.spaces.Dict, horizon: int) -> None:
        super().__init__(space, env.observation_space, env.action_space, horizon)
        self.env = env

    def make(self, task: TaskParams, render_mode: str | None = None) -> FunctionalGymEnv:
        """As `EnvDistribution.make`."""
        return FunctionalGymEnv(self.env, check_task(self.space, task), self.horizon, render_mode)

    def make_vec(self, task: TaskParams, episodes: int, device: torch.device | str = "cpu") -> TorchVectorEnv:
        """As `EnvDistribution.make_vec`; the environments live on `device`."""
        check_int("episodes", episodes)
        batch, device = check_tasks(self.space, task), pick_device(device)
        return TorchVectorEnv(self.env_on(device), batch, episodes, self.horizon, device)

    def make_functional(
        self, task: TaskParams, episodes: int, device: torch.device | str = "cpu"
    ) -> FunctionalEnvs | None:
        """The environments of `make_vec` as functions; `None` for a subclass with another `make_vec`."""
        if type(self).make_vec is not FunctionalDistribution.make_vec:
            return None
        check_int("episodes", episodes)
        batch, device = check_tasks(self.space, task), pick_device(device)
        return FunctionalEnvs(self.env_on(device), repeat_tasks(batch, episodes, device))

    def env_on(self, device: torch.device) -> FunctionalEnv:
        """The environment, ready for tensors on `device`."""
        return self.env
