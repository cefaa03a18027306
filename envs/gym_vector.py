"""N ordinary Gymnasium environments stepped together, in numpy.

Callers see `GymVectorEnv`, which checks their arguments. Behind it a `Stepper` steps the environments: a `LocalStepper`
in this process, or a `metarl.envs.workers.WorkerStepper`, which has a `LocalStepper` in each worker process.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from metarl.envs.env_store import EnvStore
from metarl.envs.vector import TaskVectorEnv, read_reset_mask
from metarl.errors import check_int
from metarl.types import TaskParams

Array: TypeAlias = npt.NDArray[Any]


StepResults: TypeAlias = tuple[Array, Array, Array, Array, Array]
"""What n environments returned: observations `[n, ...]`; rewards, terminated, truncated and successes, `[n]`.

Successes are those of `info["success"]`: 1, 0, or -1 where an environment did not report it or was not stepped.
"""


class Stepper(Protocol):
    """Steps n environments. Arguments have been checked; the caller owns the returned arrays."""

    def reset(self, mask: Array, seed: int | None) -> Array:
        """Begin episodes where `mask` `[n]` is true, environment i with `seed + i`; returns observations `[n, ...]`."""

    def step(self, actions: Array) -> StepResults:
        """Step the environments whose episodes have not ended."""

    def close(self) -> None:
        """Give the environments back."""


class LocalStepper:
    """n environments in this process, one for each row of `task` (arrays `[n, ...]`)."""

    def __init__(self, store: EnvStore, task: TaskParams) -> None:
        space = store.observation_space
        self._store, self._envs = store, store.take(task)
        n = self._number = len(self._envs)
        self._observations = np.zeros((n, *(space.shape or ())), space.dtype)
        self._terminated, self._truncated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self._give_back = weakref.finalize(self, store.put_back, self._envs, quiet=True)

    def reset(self, mask: Array, seed: int | None) -> Array:
        """As `Stepper.reset`."""
        with self._discard_on_error():
            for i in np.flatnonzero(mask).tolist():
                self._observations[i], _ = self._envs[i].reset(seed=None if seed is None else seed + i)
        self._terminated &= ~mask
        self._truncated &= ~mask
        return self._observations.copy()

    def step(self, actions: Array) -> StepResults:
        """As `Stepper.step`."""
        rewards, successes = np.zeros(self._number), np.full(self._number, -1, np.int8)
        with self._discard_on_error():
            for i in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
                result = self._envs[i].step(actions[i])
                self._observations[i], rewards[i], self._terminated[i], self._truncated[i], info = result
                if "success" in info:
                    successes[i] = bool(info["success"])
        return self._observations.copy(), rewards, self._terminated.copy(), self._truncated.copy(), successes

    def close(self) -> None:
        """As `Stepper.close`; also called when this object is garbage-collected."""
        if self._give_back.detach() is not None:
            self._store.put_back(self._envs)

    @contextlib.contextmanager
    def _discard_on_error(self) -> Iterator[None]:
        """Discard the environments if a reset or a step fails, so that they are not reused."""
        if len(self._envs) != self._number:
            raise ClosedEnvironmentError(
                "these environments have been closed, by close() or after an error; make new ones"
            )
        try:
            yield
        except BaseException:
            self._store.put_back(self._envs, failed=True, quiet=True)
            raise


class GymVectorEnv(TaskVectorEnv):
    """N environments in the order of `stepper`; observations `[N, ...]` have the observation space's type.

    Autoreset is disabled: an environment that has ended is frozen. It is not stepped, its last observation and flags
    stay as they are and its reward is 0 until `reset`.

    Args:
        stepper: steps the environments.
        num_envs: N.
        observation_space: of one environment.
        action_space: of one environment.
        env_name: the name of one environment in messages.
    """

    def __init__(
        self,
        stepper: Stepper,
        num_envs: int,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        env_name: str,
    ) -> None:
        super().__init__(num_envs, observation_space, action_space)
        self.env_name, self._stepper, self._begun = env_name, stepper, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin new episodes everywhere, or only where the mask of `options={"reset_mask": mask}` (bool `[N]`) is true.

        Environment i starts like a single one with `reset(seed=seed + i)`. Returns the observations of all
        environments `[N, ...]`, including those not reset.

        Raises:
            ValueError: a seed that is not an integer, an unknown option, or a mask of another shape or type.
            ResetNeeded: a mask before the first full reset.
            ClosedEnvironmentError: after `close`.
            WorkerError: a worker process failed.
        """
        self._check_open()
        mask = read_reset_mask(options or {}, self.num_envs, begun=self._begun)
        if seed is not None:
            seed = check_int("seed", seed, 0)
        elif not self._begun:  # reused environments would continue with their old seed
            seed = int(np.random.default_rng().integers(2**31))
        observations = self._stepper.reset(mask, seed)
        self._begun = True
        return observations, {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step: observations `[N, ...]`, rewards, terminated, truncated (each `[N]`), and infos.

        The infos have `success` and `_success`, `[N]`, if an environment reported `info["success"]`, and nothing else.
        `_success` says where it was reported, as in Gymnasium's vector environments.

        Raises:
            ValueError: actions of another shape, or of a type that does not fit the action space.
            ResetNeeded: before the first reset.
            ClosedEnvironmentError: after `close`.
            WorkerError: a worker process failed.
        """
        self._check_open()
        if not self._begun:
            raise ResetNeeded("call reset() before step()")
        *results, successes = self._stepper.step(self._as_actions(actions))
        reported = successes >= 0
        observations, rewards, terminated, truncated = results
        infos = {"success": successes > 0, "_success": reported} if reported.any() else {}
        return observations, rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Give the environments back; also done when this object is garbage-collected."""
        self._stepper.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this vector environment has been closed; make another one")

    def _as_actions(self, actions: Array) -> Array:
        """A copy, because environments may keep their action and callers may write into theirs."""
        array, space = np.asarray(actions), self.action_space
        self.check_shape(array)
        try:
            cast = array.astype(space.dtype, casting="same_kind")
        except TypeError as error:
            raise ValueError(f"actions must be of type {space.dtype}, got {array.dtype}") from error
        if array.dtype != cast.dtype and array.dtype.kind in "iu" and (cast != array).any():
            raise ValueError(f"actions must fit into {space.dtype}, got {array[cast != array][0]}")
        return cast
