"""Small environments at the top level of a module, where worker processes find them, and distributions over them."""

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3.common.running_mean_std import RunningMeanStd

from metarl.envs.cart_pole import CartPole
from metarl.envs.gym_distribution import GymDistribution

WORK, RAISE, EXIT, HANG = range(4)
BREAK = 2
"""What `Countdown` does not survive; not in its action space."""


class Countdown(gymnasium.Env[Any, Any]):
    """Terminates after `length` steps; observes the steps made since `reset` and the first random number of each."""

    instances: ClassVar[list["Countdown"]] = []

    def __init__(self, length: int = 3) -> None:
        self.observation_space, self.action_space = Box(0.0, np.inf, (2,), np.float32), Discrete(2)
        self.length, self.steps, self.all_steps, self.closed, self.broken = length, 0, 0, False, False
        self.instances.append(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {"info": "is dropped"}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.broken |= bool(action == BREAK)
        if self.broken:
            raise OSError("it is broken, and stays so")
        self.steps += 1
        self.all_steps += 1
        return self._observe(), float(self.steps + action), self.steps >= self.length, False, {}

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> np.ndarray:
        return np.array([self.steps, self.np_random.random()], dtype=np.float32)


gymnasium.register("metarl-toys/Countdown-v0", entry_point="tests.envs.toy_envs:Countdown", max_episode_steps=4)
gymnasium.register(
    "metarl-toys/Wrapped-v0",
    entry_point="tests.envs.toy_envs:Countdown",
    max_episode_steps=4,
    additional_wrappers=(gymnasium.wrappers.RecordEpisodeStatistics.wrapper_spec(),),  # outside the TimeLimit
)
LENGTH = Dict({"length": Box(1, 4, (), np.int64)})


def set_length(env: Countdown, task: dict[str, Any]) -> None:
    env.length = task["length"]


def limited_countdown(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make("metarl-toys/Countdown-v0", max_episode_steps=2, **kwargs)


class Pictures(gymnasium.Env[Any, Any]):
    """A picture with noise that moves by the action; ends when its first pixel is dark."""

    def __init__(self, brightness: float, tint: np.ndarray) -> None:
        assert isinstance(brightness, float)
        assert isinstance(tint, np.ndarray)
        self.observation_space, self.action_space = Box(0, 255, (6, 5, 3), np.uint8), Box(-1.0, 1.0, (2,), np.float32)
        self._brightness, self._tint = brightness, tint

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._picture = self._new()
        return self._picture, {}  # the array it goes on with, as careless environments do

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._picture[:] = np.roll(self._new(), int(3 * action[0]), axis=0)
        reward = np.float32(action.sum())
        action[:] = 0.0  # it is free to
        return self._picture, reward, bool(self._picture[0, 0, 0] < 20), False, {}

    def _new(self) -> np.ndarray:
        noise = self.np_random.integers(0, 200, (6, 5, 3))
        return (self._brightness * noise + self._tint).astype(np.uint8)


class Answering(gymnasium.Env[Any, Any]):
    """Returns what it is told to: from its step `from_step` on `on_step`, and `on_reset` but for the first."""

    open: ClassVar[int] = 0
    resets: ClassVar[int] = 0

    def __init__(self, space: Any, good: Any, on_reset: Any, on_step: Any, from_step: int = 3, length: int = 1) -> None:
        self.observation_space, self.action_space = space, Discrete(2)
        self.good, self.on_reset, self.on_step, self.from_step = good, on_reset, on_step, from_step
        self.steps = 0
        Answering.open += 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        Answering.resets += 1
        return self.good if self.on_reset is None or Answering.resets == 1 else self.on_reset

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.on_step if self.steps >= self.from_step else (self.good[0], 0.0, False, False, {})

    def close(self) -> None:
        Answering.open -= 1


class Counted(Countdown):
    """Counts what is opened and how often each is closed, and fails where it is told to."""

    opened: ClassVar[int] = 0
    closed: ClassVar[Counter[int]] = Counter()  # type: ignore[assignment]
    calls: ClassVar[Counter[str]] = Counter()
    faults: ClassVar[dict[str, int]] = {}

    @classmethod
    def start(cls) -> None:
        cls.opened = 0
        for counts in (cls.closed, cls.calls, cls.faults):
            counts.clear()

    @classmethod
    def fail(cls, what: str, number: int) -> None:
        """From now on the call `number` of `what` fails."""
        cls.calls[what], cls.faults[what] = 0, number

    @classmethod
    def count(cls, what: str) -> None:
        cls.calls[what] += 1
        if cls.calls[what] == cls.faults.get(what):
            raise OSError(f"the fault of {what}")

    def __init__(self, length: int = 3) -> None:
        self.count("init")
        self.number = Counted.opened
        Counted.opened += 1
        self.observation_space, self.action_space = Box(0.0, np.inf, (2,), np.float32), Discrete(2)
        self.length, self.steps, self.all_steps, self.broken = length, 0, 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.count("reset")
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count("step")
        return super().step(action)

    def close(self) -> None:
        Counted.closed[self.number] += 1
        self.count("close")


class Logged(Countdown):
    """Writes a line to a file when it is opened and closed; pays None where the action is `BREAK`."""

    def __init__(self, log: str, length: int = 3) -> None:
        super().__init__(length)
        self.log = log
        self.write("open")

    def write(self, what: str) -> None:
        with open(self.log, "a") as file:
            file.write(f"{what} {os.getpid()} {id(self)}\n")

    def step(self, action: Any) -> Any:
        if action == BREAK:
            return self._observe(), None, False, False, {}
        return super().step(action)

    def close(self) -> None:
        self.write("close")


class Learning(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps running statistics of what it sees, with Stable-Baselines3's."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.statistics = RunningMeanStd(shape=(2,))


class Trouble(gymnasium.Env[Any, Any]):
    """Does what its action says; observes how many of its kind its process has made, as a single number."""

    made: ClassVar[int] = 0

    def __init__(self, length: int = 1) -> None:
        self.observation_space, self.action_space = Box(0, 2**62, (), np.int64), Discrete(4)
        Trouble.made += 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.int64(self.made), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == RAISE:
            raise ZeroDivisionError("a fault of the environment")
        if action == EXIT:
            os._exit(3)
        if action == HANG:
            print("hanging", flush=True)
            time.sleep(600)
        return np.int64(self.made), 1.0, False, False, {}


def trouble(workers: int, timeout: float = 60.0) -> GymDistribution:
    return GymDistribution(Trouble, LENGTH, horizon=50, set_task=set_length, workers=workers, timeout=timeout)


def frozen_lake(**kwargs: Any) -> GymDistribution:
    return GymDistribution("FrozenLake-v1", Dict({"is_slippery": Discrete(2)}), horizon=12, **kwargs)


def lake_with_a_hole(hole: np.ndarray, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    rows = [["S", *"FFF"], list("FFFF"), list("FFFG")]
    rows[hole[0]][hole[1]] = "H"
    return gymnasium.make("FrozenLake-v1", desc=["".join(row) for row in rows], render_mode=render_mode)


def lakes(**kwargs: Any) -> GymDistribution:
    return GymDistribution(
        lake_with_a_hole, Dict({"hole": Box(np.array([1, 0]), np.array([2, 2]), dtype=np.int64)}), **kwargs
    )


def pendulum(**kwargs: Any) -> GymDistribution:
    return GymDistribution("Pendulum-v1", Dict({"g": Box(5.0, 15.0, (), np.float32)}), horizon=10, **kwargs)


def countdown(**kwargs: Any) -> GymDistribution:
    return GymDistribution(Countdown, LENGTH, horizon=3, set_task=set_length, **kwargs)


def pictures(**kwargs: Any) -> GymDistribution:
    space = Dict({"brightness": Box(0.5, 1.0, (), np.float32), "tint": Box(0, 40, (3,), np.int64)})
    return GymDistribution(Pictures, space, horizon=30, **kwargs)


DISTRIBUTIONS: dict[str, Callable[..., GymDistribution]] = {
    "cart_pole": lambda **kwargs: CartPole(25, **kwargs),
    "frozen_lake": frozen_lake,
    "lakes": lakes,
    "pendulum": pendulum,
    "countdown": countdown,
    "pictures": pictures,
}


def random_actions(tasks: GymDistribution, steps: int, num_envs: int) -> np.ndarray:
    """`[steps, N, ...]`, the same each time."""
    tasks.action_space.seed(0)
    return np.array([[tasks.action_space.sample() for _ in range(num_envs)] for _ in range(steps)])


class Pressing(gymnasium.Env[Any, Any]):
    """Succeeds, for this step alone, where the action of step `at` is 1; reports it from step 2 on."""

    def __init__(self, at: int = 2) -> None:
        self.observation_space, self.action_space = Box(0.0, 9.0, (1,), np.float32), Discrete(2)
        self.at, self.steps = at, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        info = {"success": float(self.steps == self.at and action == 1)} if self.steps > 1 else {}
        return np.full(1, self.steps, np.float32), float(action), False, False, info
