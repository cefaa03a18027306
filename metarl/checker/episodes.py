"""Trying environments out: random actions, and what one environment or many of them return to them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces, vector
from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]
Space: TypeAlias = gymnasium.Space[Any]
Env: TypeAlias = gymnasium.Env[Any, Any]
VectorEnv: TypeAlias = vector.VectorEnv[Any, Any, Any]


class StepRecord(NamedTuple):
    """What a reset or a step returned; of a reset there are only observations."""

    observation: Any
    reward: Any = 0.0
    terminated: Any = False
    truncated: Any = False

    def ended(self) -> bool:
        """Whether this was an episode's last; of one environment."""
        return bool(self.terminated) or bool(self.truncated)


Episode: TypeAlias = list[StepRecord]
"""Of one environment: the reset and the steps up to the end, as copies."""


def random_actions(space: Space, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Inside the space: uniform between bounds, Gaussian where one is missing; `[*shape, *action]`."""
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.start, space.start + space.n, shape)
    assert isinstance(space, spaces.Box)
    size = (*shape, *space.shape)
    if space.dtype.kind in "iu":
        return rng.integers(space.low, space.high, size, space.dtype, endpoint=True)
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = (np.where(bounded, bound, 0.0).astype(np.float64) for bound in (space.low, space.high))
    chosen = np.where(bounded, low + (high - low) * rng.random(size), rng.normal(size=size))
    inside: Array = np.clip(chosen.astype(space.dtype), space.low, space.high)
    return inside


def as_action(action: Array, like: Any) -> Any:
    """A copy, which may be written to: a tensor where the environment speaks torch; a number, no 0-d array."""
    copied = np.array(action)
    return torch.from_numpy(copied) if isinstance(like, Tensor) else copied[()]


def records(env: Env, actions: Array, seed: int | None) -> Iterator[StepRecord]:
    """What the environment returns, as it is, up to the end of the episode or of the actions."""
    first = env.reset(seed=seed)[0]
    yield StepRecord(first)
    for action in actions:
        yield (record := StepRecord(*env.step(as_action(action, first))[:4]))
        if record.ended():
            return


def vec_records(vec: VectorEnv, actions: Array, seed: int | None) -> Iterator[StepRecord]:
    """What the vector environment returns, as it is; it is stepped on after the ends."""
    first = vec.reset(seed=seed)[0]
    yield StepRecord(first, np.zeros(vec.num_envs), *np.zeros((2, vec.num_envs), bool))
    for action in actions:
        yield StepRecord(*vec.step(as_action(action, first))[:4])


def play(env: Env, actions: Array, seed: int | None) -> Episode:
    """One episode."""
    return [plain_record(record) for record in records(env, actions, seed)]


def play_vec(vec: VectorEnv, actions: Array, seed: int | None) -> list[Episode]:
    """One episode in each environment."""
    return one_by_one([plain_record(record) for record in vec_records(vec, actions, seed)])


def one_by_one(whole: Sequence[StepRecord]) -> list[Episode]:
    """A vector environment's records as an episode for each environment, cut off at its end."""
    return [_one_episode(whole, i) for i in range(len(whole[0].reward))]


def _one_episode(whole: Sequence[StepRecord], number: int) -> Episode:
    episode = [StepRecord(*(column[number] for column in record)) for record in whole]
    last = next((k for k, record in enumerate(episode) if record.ended()), len(episode))
    return episode[: last + 1]


def side_by_side(one: Iterable[StepRecord], other: Iterable[StepRecord]) -> tuple[list[StepRecord], list[StepRecord]]:
    """Both played in turn, a step at a time."""
    pairs = list(itertools.zip_longest(map(plain_record, one), map(plain_record, other)))
    return [a for a, _ in pairs if a is not None], [b for _, b in pairs if b is not None]


def plain_record(record: StepRecord) -> StepRecord:
    """A copy in arrays."""
    return StepRecord(*map(plain, record))


def plain(value: Any) -> Array:
    """A copy as an array."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    copied: Array = np.array(value)
    return copied
