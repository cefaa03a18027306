"""One task of a distribution as a vector environment of Stable-Baselines3."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from torch import Tensor

from metarl.errors import check_has, check_int, check_type
from metarl.types import TaskDistribution


class TaskVecEnv(VecEnv):
    """`num_envs` environments of ONE task, for algorithms of Stable-Baselines3.

    It reports episodes as SB3's `Monitor` does, and resets environments as `DummyVecEnv` does. Functional
    environments are stepped together as one tensor, which is faster than one after the other.

    Args:
        distribution: of tasks, such as `metarl.envs.Navigation()`.
        task: the parameters of one task, such as `{"goal": [0.3, -0.2]}`.
        num_envs: the number of environments.

    Raises:
        ValueError: for parameters that the distribution does not have, naming them.

    Example:
        >>> from metarl.envs import Navigation
        >>> env = TaskVecEnv(Navigation(horizon=20), {"goal": [0.3, -0.2]}, 4)
        >>> env.reset().shape
        (4, 2)
    """

    def __init__(self, distribution: TaskDistribution, task: Mapping[str, Any], num_envs: int) -> None:
        check_has("distribution", distribution, ("make", "make_vec"), "a task distribution, such as envs.Navigation()")
        check_type("task", task, Mapping, "the parameters of one task")
        number = check_int("num_envs", num_envs)
        self._vec = distribution.make_vec({name: np.asarray(value)[None] for name, value in task.items()}, number)
        super().__init__(number, distribution.observation_space, distribution.action_space)
        self._actions: npt.NDArray[Any] = np.zeros(0)
        self._began = time.time()
        self._returns, self._lengths = np.zeros(number), np.zeros(number, int)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment."""
        obs, _ = self._vec.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        return _to_numpy(obs)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One step of every environment; an environment whose episode has ended is reset."""
        obs, rewards, terminated, truncated = map(_to_numpy, self._vec.step(self._actions)[:4])
        ended = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(ended).tolist():
            episode = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": time.time() - self._began}
            cut = bool(truncated[i] and not terminated[i])
            infos[i] = {"episode": episode, "terminal_observation": obs[i], "TimeLimit.truncated": cut}
        if ended.any():
            obs = _to_numpy(self._vec.reset(options={"reset_mask": ended})[0])
            self._returns[ended], self._lengths[ended] = 0, 0
        return obs, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        """Close the environments."""
        self._vec.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the environments, which they share."""
        return [getattr(self._vec, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not possible: the parameters of a task do not change."""
        raise AttributeError(f"{attr_name} cannot be set: make a TaskVecEnv of another task")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Not possible: the environments are one object."""
        raise AttributeError(f"{method_name} cannot be called on single environments of a TaskVecEnv")

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> Sequence[bool]:  # type: ignore[override]
        """Whether the environments have this wrapper: true for `Monitor`, because they report episodes as it does."""
        monitors = wrapper_class.__name__ == "Monitor"
        return [monitors] * len(list(self._get_indices(indices)))


def _to_numpy(value: Any) -> npt.NDArray[Any]:
    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
