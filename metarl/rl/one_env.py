"""An environment of yours as the only task: its episodes follow one another, because there is one environment."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from metarl.rl.rollout import Noise
from metarl.types import TaskDistribution, TaskParams

ONE_TASK: TaskParams = {"task": np.zeros(1)}
"""The parameters of the only task: none are known."""


class OneEnv(VectorEnv[Any, Any, Any]):
    """An environment as a vector of one, which is reset between episodes and never closed.

    Args:
        env: the environment.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self.env, self.env_name, self.num_envs = env, type(env.unwrapped).__name__, 1
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode; the observation gets a first dimension of one."""
        result = self.env.reset(seed=seed, options=options)
        return _add_dimension(result) if isinstance(result, tuple) and len(result) == 2 else result

    def step(self, actions: Any) -> Any:
        """One step; all that is returned gets a first dimension of one."""
        result = self.env.step(actions[0])
        return _add_dimension(result) if isinstance(result, tuple) and len(result) == 5 else result

    def close_extras(self, **kwargs: Any) -> None:
        """The environment is its owner's, so it stays open."""


def _add_dimension(result: tuple[Any, ...]) -> tuple[Any, ...]:
    return *(np.asarray(value)[None] for value in result[:-1]), {}


class OneEnvDistribution:
    """A task distribution whose only task is `env`; the policy sees it as one of `like`.

    Args:
        env: an ordinary environment with the spaces of `like`; bounds of observations may differ.
        like: the task distribution of training, which has the horizon.

    Raises:
        ValueError: for other spaces.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], like: TaskDistribution) -> None:
        check_same_spaces(env, like.observation_space, like.action_space)
        self.env, self.horizon = env, like.horizon
        self.space = spaces.Dict({"task": spaces.Discrete(1)})
        self.observation_space, self.action_space = like.observation_space, like.action_space

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """The only task, `num_tasks` times."""
        return {"task": np.zeros(num_tasks)}

    def make(self, task: TaskParams) -> gymnasium.Env[Any, Any]:
        """The environment."""
        return self.env

    def make_vec(self, task: TaskParams, episodes: int, device: torch.device | str = "cpu") -> OneEnv:
        """The environment as a vector of one, for one task; the actor runs `episodes` episodes in it."""
        return OneEnv(self.env)


def check_same_spaces(
    env: gymnasium.Env[Any, Any], observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    """Check that a policy for these spaces can act in `env`; bounds of observations may differ.

    Raises:
        ValueError: naming the space that differs.
    """
    found = env.observation_space
    same = type(found) is type(observation_space) and found.shape == observation_space.shape
    kinds = {np.dtype(space.dtype).kind for space in (found, observation_space)}
    if isinstance(observation_space, spaces.Discrete):
        same = found == observation_space
    if not same or len(kinds) > 1:
        raise ValueError(
            f"tasks must be an environment with the observation_space of training, {observation_space}, got {found}"
        )
    if env.action_space != action_space:
        raise ValueError(
            f"tasks must be an environment with the action_space of training, {action_space}, got {env.action_space}"
        )


def split(noise: Noise) -> list[Noise]:
    """The noise of each episode of one task: the numbers that it has where all episodes run side by side."""
    later: list[tuple[torch.Tensor, torch.Tensor]] = []  # blocks of a long horizon, drawn once for all episodes

    def take(e: int) -> Noise:
        blocks = itertools.count()

        def more(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
            block = next(blocks)
            if block == len(later):
                assert noise.more is not None
                later.append(noise.more(steps))
            actions, transitions = later[block]
            return actions[:, :, e : e + 1], transitions[:, :, e : e + 1]

        return noise._replace(
            actions=noise.actions[:, :, e : e + 1],
            initial=noise.initial[:, e : e + 1],
            transitions=noise.transitions[:, :, e : e + 1],
            seed=noise.seed + e,
            more=None if noise.more is None else more,
        )

    return [take(e) for e in range(noise.actions.shape[2])]
