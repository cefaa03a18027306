"""A functional environment as an ordinary Gymnasium environment; `metarl.functional_env` defines the functions.

`metarl.envs.vector` steps N of them at a time, on any device.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from metarl.errors import check_choice, check_int
from metarl.functional_env import UNIFORM_LOW, Frame, FunctionalEnv, functional_step
from metarl.types import TaskParams


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise for a `FunctionalEnv`: float32, uniform in (0, 1), both ends excluded, on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device).clamp_(min=UNIFORM_LOW)


def normal(noise: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones in (0, 1), by the inverse of their distribution function."""
    result: Tensor = torch.special.ndtri(noise)
    return result


def as_env_actions(actions: Tensor, space: gymnasium.Space[Any]) -> Tensor:
    """Actions in the type a `FunctionalEnv` receives: float32 for a Box, int64 for a Discrete space.

    Raises:
        ValueError: fractions for a Discrete space.
    """
    dtype = torch.float32 if isinstance(space, gymnasium.spaces.Box) else torch.int64
    cast = actions.to(dtype)
    if actions.is_floating_point() and not dtype.is_floating_point and bool((cast != actions).any()):
        raise ValueError(f"actions must be integers for {space}, got {actions[cast != actions][0].item()}")
    return cast


class FunctionalGymEnv(gymnasium.Env[npt.NDArray[np.float32], Any]):
    """ONE environment of a `FunctionalEnv` as an ordinary Gymnasium environment: numpy in, numpy out.

    It truncates episodes at `horizon`, so it needs no TimeLimit. A step after the end raises `ResetNeeded`.

    Args:
        env: the functions.
        task: arrays without a leading T.
        horizon: steps per episode, at most.
        render_mode: None or "rgb_array".
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}  # type: ignore[misc]

    def __init__(self, env: FunctionalEnv, task: TaskParams, horizon: int, render_mode: str | None = None) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.functional, self.horizon, self.render_mode = env, check_int("horizon", horizon), render_mode
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.task = {k: torch.tensor(v)[None] for k, v in task.items()}  # [1, ...]
        self._generator = torch.Generator()
        self._state: Tensor | None = None  # [1, S]
        self._steps, self._ended = 0, False

    @torch.no_grad()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Begin an episode; `options` has no effect."""
        super().reset(seed=seed)
        if seed is not None or self._state is None:
            self._generator.manual_seed(int(self.np_random.integers(2**63)))
        self._state = self.functional.initial(self.task, uniform((1, self.functional.initial_noise), self._generator))
        self._steps, self._ended = 0, False
        return self._observe(self._state), {}

    @torch.no_grad()
    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, an empty info."""
        if self._state is None or self._ended:
            raise ResetNeeded("call reset() before step(): no episode has begun, or it has ended")
        actions = self._as_actions(action)
        noise = uniform((1, self.functional.transition_noise), self._generator)
        self._state, reward, terminal = functional_step(self.functional, self.task, self._state, actions, noise)
        self._steps += 1
        terminated = bool(terminal)
        truncated = self._steps >= self.horizon and not terminated
        self._ended = terminated or truncated
        return self._observe(self._state), float(reward), terminated, truncated, {}

    def render(self) -> Frame | None:
        """The frame `[256, 256, 3]`, or None if `render_mode` is None."""
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("call reset() before render()")
        return self.functional.render(self._state[0], {k: v[0] for k, v in self.task.items()})

    def _observe(self, state: Tensor) -> Any:
        """An array; for a Discrete space a numpy integer, because `space.contains` refuses arrays."""
        return self.functional.observation(state, self.task)[0].numpy().copy()[()]

    def _as_actions(self, action: Any) -> Tensor:
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"action must have shape {self.action_space.shape}, got {np.shape(action)}")
        return as_env_actions(torch.from_numpy(np.array(action)), self.action_space)[None]
