"""N functional environments stepped together as torch tensors."""

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import vector
from gymnasium.error import ResetNeeded
from gymnasium.vector.utils import batch_space
from torch import Tensor

from metarl.envs.functional import as_env_actions, uniform
from metarl.errors import check_choice, check_int
from metarl.functional_env import FunctionalEnv, functional_step, repeat_tasks
from metarl.types import TaskParams

# Gymnasium 1.0 does not name its autoreset modes yet
AUTORESET = {"autoreset_mode": vector.AutoresetMode.DISABLED} if hasattr(vector, "AutoresetMode") else {}


class TaskVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """N environments of several tasks, with autoreset disabled.

    Args:
        num_envs: N.
        observation_space: of one environment.
        action_space: of one environment.
    """

    metadata: ClassVar[dict[str, Any]] = {**AUTORESET, "render_modes": []}  # type: ignore[misc]

    def __init__(
        self, num_envs: int, observation_space: gymnasium.Space[Any], action_space: gymnasium.Space[Any]
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._action_shape = (num_envs, *(action_space.shape or ()))

    def check_shape(self, actions: Tensor | npt.NDArray[Any]) -> None:
        """Raise a ValueError unless there is an action of the right shape for each environment."""
        if tuple(actions.shape) != self._action_shape:
            raise ValueError(f"actions must have shape {self._action_shape}, got {tuple(actions.shape)}")


class TorchVectorEnv(TaskVectorEnv):
    """N = T x `episodes` environments, task-major: environment `t * episodes + e` is episode e of task t.

    Autoreset is disabled: an environment that has ended is frozen. Its state and flags stay as they are and its reward
    is 0 until `reset`. An episode is truncated at its step `horizon`, unless it terminates on that very step.

    Args:
        env: the functions.
        task: arrays `[T, ...]`.
        episodes: episodes per task.
        horizon: steps per episode, at most.
        device: where states, observations and rewards live.
    """

    def __init__(
        self, env: FunctionalEnv, task: TaskParams, episodes: int, horizon: int, device: torch.device | str = "cpu"
    ) -> None:
        self.env_name = type(env).__name__
        self.functional, self.horizon, self.device = env, check_int("horizon", horizon), torch.device(device)
        check_int("episodes", episodes)
        self.task = repeat_tasks(task, episodes, self.device)  # [N, ...]
        super().__init__(next(iter(self.task.values())).shape[0], env.observation_space, env.action_space)
        self._generator = torch.Generator(self.device)
        self._state: Tensor | None = None  # [N, S]
        self._clock = 0  # steps made so far; a deadline per environment costs less than a counter per environment
        self._deadline = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._ended = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    @torch.no_grad()
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Begin new episodes everywhere, or only where the mask of `options={"reset_mask": mask}` (bool `[N]`) is true.

        Returns the observations of all environments `[N, ...]`, including those not reset.

        Raises:
            ValueError: an unknown option, or a mask of another shape or type.
            ResetNeeded: a mask before the first full reset.
        """
        super().reset(seed=seed)
        mask = torch.as_tensor(
            read_reset_mask(options or {}, self.num_envs, begun=self._state is not None), device=self.device
        )
        if seed is not None or self._state is None:
            self._generator.manual_seed(int(self.np_random.integers(2**63)))
        noise = uniform((self.num_envs, self.functional.initial_noise), self._generator)
        state = self.functional.initial(self.task, noise)
        self._state = state if self._state is None else torch.where(mask[:, None], state, self._state)
        self._deadline = self._deadline.masked_fill(mask, self._clock + self.horizon)
        self._ended = self._ended & ~mask
        return self.functional.observation(self._state, self.task).clone(), {}

    @torch.no_grad()
    def step(self, actions: Tensor | npt.NDArray[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """One step everywhere: observations `[N, ...]`, rewards, terminated, truncated (each `[N]`), an empty info.

        Raises:
            ValueError: actions of another shape.
            ResetNeeded: before the first reset.
        """
        if self._state is None:
            raise ResetNeeded("call reset() before step()")
        actions, env, task, ended = self._as_actions(actions), self.functional, self.task, self._ended
        noise = uniform((self.num_envs, env.transition_noise), self._generator)
        self._state, reward, terminated = functional_step(env, task, self._state, actions, noise, running=~ended)
        self._clock += 1
        # Ended environments need no special case: their state, and so `terminated`, does not change; time only grows.
        truncated = (self._deadline <= self._clock) > terminated  # "and not", in one operation
        self._ended = terminated | truncated
        # clone: an observation may be a view of the state, and callers may write into what they get
        return env.observation(self._state, task).clone(), reward.masked_fill(ended, 0.0), terminated, truncated, {}

    def _as_actions(self, actions: Tensor | npt.NDArray[Any]) -> Tensor:
        tensor = actions if isinstance(actions, Tensor) else torch.from_numpy(np.array(actions))
        self.check_shape(tensor)
        return as_env_actions(tensor.to(self.device), self.single_action_space)


def read_reset_mask(options: Mapping[str, Any], num_envs: int, *, begun: bool) -> npt.NDArray[np.bool_]:
    """The mask (bool `[num_envs]`) in the `options` of a vector environment's `reset`.

    Raises:
        ValueError: an unknown option, or a mask of another shape or type.
        ResetNeeded: a mask before the first full reset.
    """
    for name in options:
        check_choice("reset option", name, ("reset_mask",))
    if "reset_mask" not in options:
        return np.ones(num_envs, dtype=bool)
    if not begun:
        raise ResetNeeded("the first reset must be of all environments, without a reset_mask")
    given = options["reset_mask"]
    mask = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    if mask.shape != (num_envs,) or mask.dtype != bool:
        raise ValueError(f"reset_mask must be bool of shape ({num_envs},), got {mask.dtype} of shape {mask.shape}")
    return mask
