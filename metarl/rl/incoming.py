"""Checks of what environments return, so that nothing is cast, broadcast or propagated silently.

At every reset and step of a vector environment: the number of values returned, shapes, kinds of numbers, flags, the
range of Discrete observations. At its first reset and its first step: the range of other observations. After a
rollout: NaN and infinity, with the environment, task, episode and step.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from metarl.errors import CHECK_ENVIRONMENT, SMALLER_STEPS, NonFiniteError
from metarl.functional_env import FunctionalEnv
from metarl.rl.advantages import Episodes
from metarl.types import HasName

STEP = "(observations, rewards, terminated, truncated, infos)"


class Arrived(NamedTuple):
    """The values of a step, `[T, E, ...]`."""

    obs: Tensor
    reward: Tensor
    terminated: Tensor  # bool
    truncated: Tensor  # bool
    success: Tensor | None  # bool, of `info["success"]`; None if it was not reported


class Incoming:
    """Checks and converts what a vector environment of T x E environments returns.

    Args:
        vec: the environments, in numpy or torch.
        per_task: T and E.
        device: of the tensors.
        dtype: of observations and rewards.
    """

    def __init__(
        self, vec: VectorEnv[Any, Any, Any], per_task: tuple[int, int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._name, self._space = env_name(vec), vec.single_observation_space
        self._per_task, self._device, self._dtype = per_task, device, dtype
        self._whole = not isinstance(self._space, spaces.Box) or self._space.dtype.kind in "iub"
        self._shape = (per_task[0] * per_task[1], *(self._space.shape or ()))
        self._discrete = isinstance(self._space, spaces.Discrete)
        self._step = 0

    def first(self, result: Any) -> Tensor:
        """The observations `[T, E, ...]` of `reset`.

        Raises:
            ValueError: when they do not fit the observation space.
        """
        self._step = 0
        if not isinstance(result, tuple) or len(result) != 2:
            self._refuse("reset", "return (observations, infos)", _form(result))
        return self._observations(result[0])

    def next(self, result: Any) -> Arrived:
        """The values of `step`.

        Raises:
            ValueError: when they have the wrong form, or do not fit the observation space.
        """
        self._step += 1
        if not isinstance(result, tuple) or len(result) != 5:
            self._refuse("step", f"return {STEP}", _form(result))
        reward = self._array("rewards", result[1], self._shape[:1], "biuf")
        flags = [self._flags(name, x) for name, x in zip(("terminated", "truncated"), result[2:4], strict=True)]
        observations = self._observations(result[0])
        terminated, truncated = flags
        success = self._success(result[4])
        return Arrived(observations, self._tensor(reward, self._dtype), terminated, truncated, success)

    def _success(self, infos: Any) -> Tensor | None:
        """Where the infos report a success. As in Gymnasium, `success` is known where `_success` is true."""
        if not isinstance(infos, Mapping) or "success" not in infos:
            return None
        found = self._tensor(self._array("success", infos["success"], self._shape[:1], "biuf"))
        known = self._flags("_success", infos["_success"]) if "_success" in infos else torch.ones_like(found).bool()
        return (found > 0) & known

    def _observations(self, x: Any) -> Tensor:
        array = self._array("observations", x, self._shape, "iub" if self._whole else "iubf")
        # the range of a Box costs time: look at the first observations only
        if self._step < 2 or self._discrete:
            self._check_range(array)
        return self._tensor(array, self._dtype)

    def _flags(self, name: str, x: Any) -> Tensor:
        flags = self._tensor(self._array(name, x, self._shape[:1], "biu"))
        if flags.dtype != torch.bool and bool(((flags != 0) & (flags != 1)).any()):
            self._refuse(name, "be booleans", f"{flags.flatten()[flags.flatten() > 1][:1].tolist()}")
        return flags.bool()

    def _array(self, name: str, x: Any, shape: tuple[int, ...], kinds: str) -> Any:
        """`x` as an array or a tensor of this shape, with one of these kinds of numbers."""
        try:
            array = x if isinstance(x, Tensor | np.ndarray) else np.asarray(x)
        except ValueError:  # rows of different lengths
            array = np.asarray(None)
        # refuse it, with what was expected and what was found
        if tuple(array.shape) != shape or _kind(array) not in kinds:
            words = {"biuf": "numbers", "biu": "booleans"}.get(kinds, f"elements of {self._space},")
            found = f"{array.dtype} of shape {tuple(array.shape)}" if _kind(array) != "O" else f"a {type(x).__name__}"
            if name == "observations" and self._whole and _kind(array) == "f":
                found += "; convert them to integers, and multiply images in [0, 1] by 255 first"
            self._refuse(name, f"be {words} of shape {shape}", found)
        return array

    def _tensor(self, array: Any, dtype: torch.dtype | None = None) -> Tensor:
        """`[T * E, ...]` to `[T, E, ...]`; numpy arrays are copied, because the environment may reuse their memory."""
        if isinstance(array, Tensor):
            whole = array.to(self._device, dtype)
        else:
            whole = torch.tensor(np.ascontiguousarray(array), dtype=dtype, device=self._device)
        return whole.view(*self._per_task, *whole.shape[1:])

    def _check_range(self, array: Any) -> None:
        outside = outside_of(self._space, array)
        if not bool(outside.any()):
            return
        if not self._whole:
            warn_outside(self._name, self._space)
            return
        i = int(np.argwhere(np.asarray(outside.tolist()))[0][0])
        found = f"{array[i].tolist()} in task {i // self._per_task[1]}, episode {i % self._per_task[1]}"
        self._refuse("observations", f"lie inside {self._space}", found)

    def _refuse(self, name: str, wanted: str, found: str) -> NoReturn:
        raise ValueError(f"{self._name}, step {self._step}: {name} must {wanted}, got {found}")


def env_name(vec: VectorEnv[Any, Any, Any]) -> str:
    """The name of one of the environments in messages."""
    return vec.env_name if isinstance(vec, HasName) else type(vec).__name__


def warn_outside(name: str, space: spaces.Space[Any]) -> None:
    """Warn, once per text: float observations outside their space are used as they are."""
    warnings.warn(
        f"{name}: observations should lie inside {space}, but some do not; they are used as they are", stacklevel=2
    )


def outside_of(space: spaces.Space[Any], array: Any) -> Any:
    """Which numbers are outside the bounds of a Box or a Discrete; NaN counts as inside."""
    if isinstance(space, spaces.Discrete):
        return (array < int(space.start)) | (array >= int(space.start + space.n))
    low, high = space.low, space.high  # type: ignore[attr-defined]
    if isinstance(array, Tensor):
        low, high = (torch.as_tensor(bound, device=array.device) for bound in (low, high))
    return (array < low) | (array > high)


def _kind(array: Any) -> str:
    if not isinstance(array, Tensor):
        return str(array.dtype.kind)
    if array.dtype == torch.bool:
        return "b"
    return "f" if array.dtype.is_floating_point else "c" if array.dtype.is_complex else "i"


def _form(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def check_actions_finite(name: str, obs: Tensor, action: Tensor, running: Tensor, step: int) -> None:
    """Check the actions `[T, E, ...]` for `obs` in running environments, before they are sent.

    Raises:
        NonFiniteError: naming the task, episode and step; the observation, if that is not finite either.
    """
    if not action.is_floating_point() or math.isfinite(action.sum().item()):
        return
    for what, x, number in (("observation", obs, step - 1), ("action", action, step)):
        bad = ~torch.isfinite(x).flatten(2).all(2) & running
        if bad.any():
            task, episode = bad.nonzero()[0].tolist()
            raise _not_finite(what, name, task, episode, number)


def check_functional(env: FunctionalEnv, obs: Tensor, mask: Tensor) -> None:
    """Check the observations `[T, E, H, ...]` of functional environments, which are stepped without checks.

    Raises:
        ValueError: when their shape is not the space's, or they are outside a Discrete.
    """
    name, space = type(env).__name__, env.observation_space
    if tuple(obs.shape[3:]) != space.shape:
        raise ValueError(f"{name}: observations must have shape {space.shape}, got {tuple(obs.shape[3:])}")
    if isinstance(space, spaces.Discrete) and bool((outside := outside_of(space, obs) & (mask > 0)).any()):
        task, episode, step = outside.nonzero()[0].tolist()
        found = f"{obs[task, episode, step].item():g} in task {task}, episode {episode}"
        raise ValueError(f"{name}, step {step}: observations must lie inside {space}, got {found}")


def check_finite_episodes(name: str, episodes: Episodes, actions: Tensor, log_probs: Tensor) -> None:
    """Check everything in a rollout up to the end of each episode; all tensors are `[T, E, H, ...]`.

    Values after the end of an episode are set to zero if any are not finite.

    Raises:
        NonFiniteError: naming the first step, and its task and episode.
    """
    everything = [episodes.obs, actions, log_probs, episodes.rewards, episodes.final_obs]
    floating = [x for x in everything if x.is_floating_point()]
    total = torch.stack([x.sum().float() for x in floating]).sum()
    if bool(torch.isfinite(total)):  # one synchronisation; the sum may overflow, so look again below
        return
    # find the earliest NaN or infinity in a running episode
    running = episodes.mask > 0
    first: tuple[int, str, int, int, int] | None = None
    for what, x, number in zip(("observation", "action", "action", "reward"), everything, (0, 1, 1, 1), strict=False):
        bad = ~torch.isfinite(x).flatten(3).all(3) if x.ndim > 3 else ~torch.isfinite(x)
        if (bad & running).any():
            task, episode, step = min((bad & running).nonzero().tolist(), key=lambda place: place[2])
            if first is None or step < first[0]:
                first = step, what, task, episode, step + number
    if first is not None:
        raise _not_finite(first[1], name, *first[2:])
    # none: it came after the end of an episode
    for x in floating[:-1]:
        x.masked_fill_(~running.view(*running.shape, *[1] * (x.ndim - 3)), 0)
    bad = ~torch.isfinite(episodes.final_obs).flatten(2).all(2)
    if bad.any():
        task, episode = bad.nonzero()[0].tolist()
        raise _not_finite("observation", name, task, episode, int(running[task, episode].sum()))


def _not_finite(what: str, name: str, task: int, episode: int, step: int) -> NonFiniteError:
    by_policy = what == "action"
    quantity = f"the policy's action in {name}" if by_policy else f"the {what} of {name}"
    advice = SMALLER_STEPS if by_policy else CHECK_ENVIRONMENT
    return NonFiniteError(quantity, task, episode=episode, step=step, advice=advice)
