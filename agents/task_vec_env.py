"""Several environments of one task as a Stable-Baselines3 vector environment, stepped together."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from metarl.errors import check_int
from metarl.types import TaskDistribution, TaskParams


class TaskVecEnv(VecEnv):
    """`number` environments of ONE task of a distribution, for algorithms of Stable-Baselines3.

    They are stepped together, which is faster than SB3's `DummyVecEnv` where environments are functions. As SB3 expects
    it, an environment whose episode has ended begins the next one at once, and its info has the `terminal_observation`
    and `TimeLimit.truncated`.

    Args:
        distribution: it makes the environments.
        task: one task's parameters, arrays without a leading T.
        number: of environments.
        seed: of their randomness; `env.seed(...)` changes it at the next reset.

    Raises:
        ValueError: for a task that does not fit, or a `number` that is not a positive integer.

    Example:
        >>> from metarl.envs import Navigation
        >>> env = TaskVecEnv(Navigation(horizon=2), {"goal": [0.3, -0.2]}, number=3)
        >>> env.reset().shape
        (3, 2)
        >>> _ = env.step(np.zeros((3, 2), np.float32))
        >>> obs, rewards, dones, infos = env.step(np.zeros((3, 2), np.float32))
        >>> dones.tolist(), infos[0]["TimeLimit.truncated"]
        ([True, True, True], True)
    """

    def __init__(self, distribution: TaskDistribution, task: TaskParams, number: int, seed: int = 0) -> None:
        check_int("number", number)
        stacked = {name: np.asarray(value)[None] for name, value in task.items()}
        self.vec = distribution.make_vec(stacked, number)
        self._seed: int | None = check_int("seed", seed, minimum=0)
        self._actions: npt.NDArray[Any] | None = None
        self.render_mode = None  # SB3 asks for it
        super().__init__(number, distribution.observation_space, distribution.action_space)

    def reset(self) -> VecEnvObs:
        """Begin new episodes everywhere."""
        obs, _ = self.vec.reset(seed=self._seed)
        self._seed = None  # only once: later episodes go on with the same generator
        return _to_numpy(obs)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset."""
        self._seed = seed
        return [None if seed is None else seed + i for i in range(self.num_envs)]

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One step everywhere; environments that ended return the first observation of their next episode."""
        assert self._actions is not None
        obs, rewards, terminated, truncated = map(_to_numpy, self.vec.step(self._actions)[:4])
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i] = {"terminal_observation": obs[i], "TimeLimit.truncated": bool(truncated[i] and not terminated[i])}
        if dones.any():
            obs = _to_numpy(self.vec.reset(options={"reset_mask": dones})[0])
        return obs, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the environments."""
        self.vec.close()

    # What SB3 may ask of single environments.

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the vector environment, once for each of `indices`."""
        return [getattr(self, attr_name)] * len(self._get_indices(indices))  # type: ignore[arg-type]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not possible.

        Raises:
            ValueError: always; make the environments with other parameters instead.
        """
        raise ValueError(f"{attr_name!r} cannot be set: single environments are not there; make another TaskVecEnv")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Not possible.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{method_name!r} cannot be called: single environments are not there")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """No environment has a wrapper."""
        return [False] * len(self._get_indices(indices))  # type: ignore[arg-type]


def _to_numpy(x: Any) -> npt.NDArray[Any]:
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
