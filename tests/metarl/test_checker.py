"""The checker of task distributions: good ones pass, and each small error in one is named, with its cure."""

import copy
import functools
import pickle
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv

from metarl.checker import CHECKS, WORKER_CHECKS, TaskDistributionError, check_task_distribution
from metarl.checker.probe import Probe
from metarl.checker.reporting import problems_of
from metarl.envs import ENVS, Navigation, make_distribution
from metarl.envs.grid_world import GridWorld
from metarl.envs.vector import AUTORESET

HORIZON = 12
OBSERVATIONS = spaces.Box(-3.0, 3.0, (1,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (1,), np.float32)


class WalkEnv(gymnasium.Env[Any, Any]):
    """A walk on the line to a goal, where it ends; it begins near 0, or exactly there."""

    observation_space, action_space = OBSERVATIONS, ACTIONS
    x: Any

    def __init__(self, goal: Any, noise: float = 0.0) -> None:
        self.goal, self.noise = goal, noise

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.steps = np.full(1, self.noise * self.np_random.normal(), np.float32), 0
        return self.x.copy(), {}

    def step(self, action: Any) -> Any:
        self.x = self.x + np.float32(0.1) * action
        self.steps += 1
        distance = abs(self.x - self.goal)[0]
        terminated = bool(distance < 0.02)
        return self.x.copy(), -float(distance), terminated, self.steps >= HORIZON and not terminated, {}


class WalkVec(VectorEnv[Any, Any, Any]):
    """Many of them."""

    metadata = AUTORESET
    single_observation_space, single_action_space = OBSERVATIONS, ACTIONS

    def __init__(self, goal: Any, noise: float = 0.0) -> None:
        self.goal, self.noise, self.num_envs = goal, noise, len(goal)
        self.x = np.zeros((len(goal), 1), np.float32)
        self.steps, self.ended = np.zeros(len(goal), int), np.zeros(len(goal), bool)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if seed is not None:
            self.generators = [seeding.np_random(seed + i)[0] for i in range(self.num_envs)]
        self.x = np.where(mask[:, None], self.starts(), self.x)
        self.steps, self.ended = np.where(mask, 0, self.steps), self.ended & ~mask
        return self.x.copy(), {}

    def starts(self) -> Any:
        return np.array([[self.noise * generator.normal()] for generator in self.generators], np.float32)

    def step(self, action: Any) -> Any:
        self.x = np.where(self.ended[:, None], self.x, self.x + np.float32(0.1) * action)
        self.steps = self.steps + 1
        distance = abs(self.x[:, 0] - self.goal[:, 0])
        reward = np.where(self.ended, 0.0, -distance)
        terminated = distance < 0.02
        truncated = (self.steps >= HORIZON) & ~terminated
        self.ended = terminated | truncated
        return self.x.copy(), reward, terminated, truncated, {}


class Walk:
    """Goals between -1 and 1."""

    env: Any = WalkEnv
    vec: Any = WalkVec
    noise = 0.0

    def __init__(self) -> None:
        self.space = spaces.Dict({"goal": spaces.Box(-1.0, 1.0, (1,), np.float32)})
        self.observation_space: Any = OBSERVATIONS
        self.action_space: Any = ACTIONS
        self.horizon: Any = HORIZON

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"goal": rng.uniform(-1.0, 1.0, (num_tasks, 1)).astype(np.float32)}

    def make(self, task: Any) -> Any:
        return self.env(np.array(task["goal"]), self.noise)

    def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
        return self.vec(np.repeat(task["goal"], episodes, axis=0), self.noise)


class NoisyWalk(Walk):
    """Begins near 0, environment i of `reset(seed=s)` as one alone with s + i."""

    noise = 0.05


class SharedGeneratorVec(WalkVec):
    """One generator for all: random as those alone, but with other numbers."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def starts(self) -> Any:
        return self.noise * self.generator.normal(size=(self.num_envs, 1)).astype(np.float32)


class SharedGeneratorWalk(NoisyWalk):
    vec = SharedGeneratorVec


class SparseWalk(Walk):
    """A reward of 1 where the walk ends: random actions may never meet it, which is no error."""

    class env(WalkEnv):
        def step(self, action: Any) -> Any:
            x, _, terminated, truncated, info = super().step(action)
            return x, float(terminated), terminated, truncated, info

    class vec(WalkVec):
        def step(self, action: Any) -> Any:
            running = ~self.ended
            x, _, terminated, truncated, info = super().step(action)
            return x, (terminated & running).astype(float), terminated, truncated, info

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"goal": rng.uniform(0.95, 1.0, (num_tasks, 1)).astype(np.float32)}


class WalkByNumber(Walk):
    """Discrete actions, looked up in a dictionary as Gymnasium's FrozenLake does: a 0-d array would not be found."""

    MOVES: Any = {0: -1.0, 1: 1.0}  # noqa: RUF012

    class env(WalkEnv):
        action_space = spaces.Discrete(2)  # type: ignore[assignment]

        def step(self, action: Any) -> Any:
            return super().step(np.float32(WalkByNumber.MOVES[action]))

    class vec(WalkVec):
        single_action_space = spaces.Discrete(2)  # type: ignore[assignment]

        def step(self, action: Any) -> Any:
            return super().step(np.float32([[WalkByNumber.MOVES[a]] for a in action]))

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(2)


class WalkInPlace(Walk):
    """Writes into the actions it is given: those of the next try must not suffer."""

    class env(WalkEnv):
        def step(self, action: Any) -> Any:
            action *= 0.5
            return super().step(action)

    class vec(WalkVec):
        def step(self, action: Any) -> Any:
            action *= 0.5
            return super().step(action)


class OneGoal(Walk):
    """All tasks are the same, as `space` says."""

    def __init__(self) -> None:
        super().__init__()
        self.space = spaces.Dict({"goal": spaces.Box(0.5, 0.5, (1,), np.float32)})

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"goal": np.full((num_tasks, 1), 0.5, np.float32)}


def problems(distribution: Any, **kwargs: Any) -> tuple[str, ...]:
    try:
        check_task_distribution(distribution, **kwargs)
    except TaskDistributionError as error:
        return error.problems
    return ()


GRIDS = [functools.partial(GridWorld, image=image, horizon=10) for image in (False, True)]
GOOD = [Walk, NoisyWalk, SharedGeneratorWalk, SparseWalk, WalkByNumber, WalkInPlace, OneGoal, *GRIDS]


@pytest.mark.parametrize("good", GOOD, ids=str)
def test_good_ones_have_no_problems(good: Callable[[], Any]) -> None:
    assert check_task_distribution(good(), workers=True) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_the_seed(seed: int) -> None:
    for good in (NoisyWalk, SharedGeneratorWalk):
        check_task_distribution(good(), seed=seed, episodes=seed, num_tasks=2)


EXACT = ["navigation", "navigation_ring", "point_velocity", "gaussian_bandit", "tabular_mdp", "linear_gaussian"]


@pytest.mark.parametrize("name", EXACT)
def test_registered_ones_have_no_problems(name: str) -> None:
    assert name in ENVS
    short = {"horizon": min(10, make_distribution(name).horizon)}  # to save time
    check_task_distribution(make_distribution(name, **short), workers=True)


class Broken:
    """Each differs from a good one in one small error."""

    class SampleForgetsTheSize(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"goal": rng.uniform(-1.0, 1.0, 1).astype(np.float32)}

    class SampleSqueezesOneTask(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            goal = super().sample(num_tasks, rng)["goal"]
            return {"goal": goal if num_tasks > 1 else goal.squeeze()}

    class SampleHasOtherKeys(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"gaol": super().sample(num_tasks, rng)["goal"]}

    class SampleForgetsTheType(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"goal": rng.uniform(-1.0, 1.0, (num_tasks, 1))}

    class SampleLeavesTheSpace(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"goal": rng.uniform(-1.0, 1.5, (num_tasks, 1)).astype(np.float32)}

    class SampleIsNotFinite(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            goal = super().sample(num_tasks, rng)["goal"]
            goal[7:8] = np.nan
            return {"goal": goal}

    class SampleUsesTheGlobalGenerator(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"goal": np.random.uniform(-1.0, 1.0, (num_tasks, 1)).astype(np.float32)}  # noqa: NPY002

    class SampleHasAGeneratorOfItsOwn(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.rng = np.random.default_rng(0)

        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return super().sample(num_tasks, self.rng)

    class SampleIgnoresTheGenerator(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return super().sample(num_tasks, np.random.default_rng(0))

    class SampleCopiesTheGenerator(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return super().sample(num_tasks, copy.deepcopy(rng))

    class SampleRepeatsOneDraw(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"goal": np.repeat(super().sample(1, rng)["goal"], num_tasks, axis=0)}

    class SpaceIsMissing(Walk):
        def __init__(self) -> None:
            super().__init__()
            del self.space

    class SpaceIsNested(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.space = spaces.Dict({"goal": spaces.Tuple(self.space.values())})

    class ActionsAreMultiDiscrete(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.MultiDiscrete([3, 3])

    class HorizonIsAFraction(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.horizon = 12.0

    class MakeVecTakesNoDevice(Walk):
        def make_vec(self, task: Any, episodes: int) -> Any:  # type: ignore[override]
            return super().make_vec(task, episodes)

    class RewardIsAnArray(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                x, reward, *rest = super().step(action)
                return x, np.array([reward]), *rest

    class ObservationIsDouble(Walk):
        class env(WalkEnv):
            def reset(self, **kwargs: Any) -> Any:
                return super().reset(**kwargs)[0].astype(np.float64), {}

    class RewardIsNotFinite(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                x, reward, *rest = super().step(action)
                return x, np.nan if self.steps == 3 else reward, *rest

    class FlagIsAnInteger(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                *others, terminated, truncated, info = super().step(action)
                return *others, int(terminated), truncated, info

    class OneStepTooMany(Walk):
        class env(WalkEnv):
            def reset(self, **kwargs: Any) -> Any:
                result = super().reset(**kwargs)
                self.steps = -1
                return result

    class EndsInBothWays(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                x, reward, terminated, truncated, info = super().step(action)
                return x, reward, terminated or truncated, truncated, info

    class OldGymForm(Walk):
        class env(WalkEnv):
            def reset(self, **kwargs: Any) -> Any:
                return super().reset(**kwargs)[0]

    class OldGymStep(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                x, reward, terminated, truncated, info = super().step(action)
                return x, reward, terminated or truncated, info

    class MakeGivesNoEnvironment(Walk):
        class env:
            def __init__(self, goal: Any, noise: float) -> None:
                pass

    class MakeHasAnotherSpace(Walk):
        class env(WalkEnv):
            action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    class ObservationIsAList(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                x, *rest = super().step(action)
                return x.tolist(), *rest

    class ObservationIsARow(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                x, *rest = super().step(action)
                return x[None], *rest

    class ObservationIsNotFinite(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                x, *rest = super().step(action)
                return x if self.steps != 3 else x + np.float32(np.inf), *rest

    class EnvUsesTheGlobalGenerator(NoisyWalk):
        class env(WalkEnv):
            def reset(self, **kwargs: Any) -> Any:
                super().reset(**kwargs)
                self.x = 0.05 * torch.randn(1).numpy()
                return self.x.copy(), {}

    class ResetForgetsTheStart(Walk):
        class env(WalkEnv):
            def reset(self, **kwargs: Any) -> Any:
                x = getattr(self, "x", np.zeros(1, np.float32))
                super().reset(**kwargs)
                self.x = x
                return self.x.copy(), {}

    class OneEnvironmentForAll(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.only = WalkEnv(None)

        def make(self, task: Any) -> Any:
            self.only.goal = np.array(task["goal"])
            return self.only

    class EnvironmentsShareTheirPlace(Walk):
        class env(WalkEnv):
            place: Any = np.zeros(1, np.float32)

            def reset(self, **kwargs: Any) -> Any:
                super().reset(**kwargs)
                type(self).place[:] = 0.0
                return self.x, {}

            def step(self, action: Any) -> Any:
                self.x = type(self).place
                result = super().step(action)
                type(self).place = self.x
                return result

    class MakeChangesTheTask(Walk):
        def make(self, task: Any) -> Any:
            task["goal"] *= 0.5
            return WalkEnv(2.0 * task["goal"])

    class MakeKeepsTheTask(Walk):
        def make(self, task: Any) -> Any:
            return WalkEnv(np.asarray(task["goal"]))

    class MakeKeepsTheTaskOfTwins(Walk):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            goal = super().sample(num_tasks, rng)["goal"]
            goal[1:2] = goal[:1]
            return {"goal": goal}

        def make(self, task: Any) -> Any:
            return WalkEnv(np.asarray(task["goal"]))

    class TheTaskIsIgnored(Walk):
        def make(self, task: Any) -> Any:
            return WalkEnv(np.full(1, 0.5, np.float32))

        def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
            return WalkVec(np.full((len(task["goal"]) * episodes, 1), 0.5, np.float32))

    class OneEnvironmentATask(Walk):
        def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
            return WalkVec(np.array(task["goal"]))

    class EpisodeMajor(Walk):
        def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
            return WalkVec(np.tile(task["goal"], (episodes, 1)))

    class OtherReward(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                x, reward, *rest = super().step(action)
                return x, 0.9 * reward, *rest

    class OtherRewardIfRandom(SharedGeneratorWalk):
        class vec(SharedGeneratorVec):
            def step(self, action: Any) -> Any:
                x, reward, *rest = super().step(action)
                return x, 0.9 * reward, *rest

    class OtherOrderIfRandom(SharedGeneratorWalk):
        def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
            return SharedGeneratorVec(np.tile(task["goal"], (episodes, 1)), self.noise)

    class MakeVecGivesOneEnvironment(Walk):
        vec = WalkEnv

    class MakeVecGivesOneEnvironmentForOne(Walk):
        def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
            vec = super().make_vec(task, episodes)
            return vec if vec.num_envs > 1 else self.make({"goal": task["goal"][0]})

    class MakeVecHasAnotherSpace(Walk):
        class vec(WalkVec):
            single_observation_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    class VecObservationIsAList(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                x, *rest = super().step(action)
                return x.tolist(), *rest

    class VecResetForgetsTheStart(Walk):
        class vec(WalkVec):
            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                x = self.x
                super().reset(seed=seed, options=options)
                self.x = self.x if options else x
                return self.x.copy(), {}

    class VecEndsEarly(Walk):
        class vec(WalkVec):
            def reset(self, **kwargs: Any) -> Any:
                result = super().reset(**kwargs)
                self.steps = np.where(self.steps == 0, 1, self.steps)
                return result

    class VecSaysNothingOfAutoreset(Walk):
        class vec(WalkVec):
            metadata: Any = {}  # noqa: RUF012

    class VecResetsWhatHasEnded(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                if self.ended.any():
                    self.reset(options={"reset_mask": self.ended.copy()})
                return super().step(action)

    class VecPaysAfterTheEnd(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                x, _, *rest = super().step(action)
                return x, -abs(x - self.goal)[:, 0], *rest

    class VecReturnsItsBuffer(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                _, reward, *rest = super().step(action)
                self.buffer = getattr(self, "buffer", np.zeros_like(self.x))
                self.buffer[:] = self.x
                return self.buffer, reward, *rest

    class VecKnowsNoMask(Walk):
        class vec(WalkVec):
            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                return super().reset(seed=seed)

    class MaskForgetsAClock(Walk):
        class vec(WalkVec):
            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                steps = self.steps
                result = super().reset(seed=seed, options=options)
                self.steps[0] = steps[0] if options else 0
                return result

    class MaskResetsAnotherClock(Walk):
        class vec(WalkVec):
            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                result = super().reset(seed=seed, options=options)
                self.steps[-1] = 0
                return result

    class MaskBeginsElsewhere(Walk):
        class vec(WalkVec):
            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                super().reset(seed=seed, options=options)
                self.x = np.where(options["reset_mask"][:, None], np.float32(0.5), self.x) if options else self.x
                return self.x.copy(), {}

    class OneNoiseForAll(NoisyWalk):
        class vec(WalkVec):
            def starts(self) -> Any:
                return np.repeat(super().starts()[:1], self.num_envs, axis=0)

    class VecIgnoresTheSeed(NoisyWalk):
        class vec(WalkVec):
            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                return super().reset(seed=5, options=options)

    class VecHidesItsStarts(NoisyWalk):
        class vec(WalkVec):
            def reset(self, **kwargs: Any) -> Any:
                x, info = super().reset(**kwargs)
                return np.where(self.steps[:, None] == 0, np.float32(0.0), x), info

    class VecHasNoSeed(NoisyWalk):
        class vec(SharedGeneratorVec):
            def starts(self) -> Any:
                return super().starts() + np.random.normal() * self.noise  # noqa: NPY002

    class OneVectorForAll(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.only = WalkVec(np.zeros((1, 1), np.float32))

        def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
            self.only.__init__(np.repeat(task["goal"], episodes, axis=0))  # type: ignore[misc]
            return self.only

    class VecKeepsTheTask(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                self.goal = np.repeat(self.task, self.num_envs // len(self.task), axis=0)
                return super().step(action)

        def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
            vec = super().make_vec(task, episodes)
            vec.task = task["goal"]
            return vec

    class VecIsNotFinite(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                x, reward, *rest = super().step(action)
                reward[-1] = np.inf
                return x, reward, *rest

    class VecFlagsAreFloats(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                *others, truncated, info = super().step(action)
                return *others, truncated.astype(float), info

    class Raises(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                if self.steps == 4:
                    raise KeyError("velocity")
                return super().step(action)

    class VecRaises(Walk):
        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                if self.steps.max() == 4:
                    raise KeyError("velocity")
                return super().step(action)

    class VecHasNoMetadata(Walk):
        class vec(WalkVec):
            metadata: Any = None

    class HoldsALambda(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.reward = lambda x: -x

    class ForgetsWhenPickled(Walk):
        low = -1.0

        def __init__(self) -> None:
            super().__init__()
            self.low = -0.5

        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"goal": rng.uniform(self.low, 1.0, (num_tasks, 1)).astype(np.float32)}

        def __getstate__(self) -> Any:
            return {name: value for name, value in vars(self).items() if name != "low"}


EXPECTED = {  # parts of the one problem of each, in order: what was wanted, what was found, how to mend it
    "SampleForgetsTheSize": ("sample(3, rng)['goal']", "shape (3, 1)", ": shape (1,).", "size=(num_tasks, ...)"),
    "SampleSqueezesOneTask": ("sample(1, rng)['goal']", "shape (1, 1)", "found: shape ()", "size=(num_tasks, ...)"),
    "SampleHasOtherKeys": ("sample(3, rng)", "keys of space, ['goal']", "['gaol']", "name entries alike"),
    "SampleForgetsTheType": ("sample", "['goal']", "float32; found: float64", ".astype(float32)"),
    "SampleLeavesTheSpace": (
        "sample",
        "['goal']",
        "inside Box(-1.0, 1.0",
        "of 64 tasks",
        "widen those of space['goal']",
    ),
    "SampleIsNotFinite": ("sample", "['goal']", "finite; found: NaN or infinity in task 7", "look for a division"),
    "SampleUsesTheGlobalGenerator": ("sample", "global random", "draws from numpy.random.", "rng.uniform(...), not np"),
    "SampleHasAGeneratorOfItsOwn": ("sample", "same tasks for the same rng; found: other tasks", "keep none in self"),
    "SampleIgnoresTheGenerator": (
        "sample",
        "other tasks for another rng; found: the same",
        "nor from a generator with a seed",
    ),
    "SampleCopiesTheGenerator": ("sample", "other tasks in the next call with the same rng", "rng itself, neither"),
    "SampleRepeatsOneDraw": ("sample(64, rng)", "each task anew; found: one task 64 times", "size=(num_tasks, ...)"),
    "SpaceIsMissing": ("space must be a gymnasium.spaces.Dict", "found: None", "self.space = gymnasium"),
    "SpaceIsNested": ("space['goal'] must be the space of one array; found: Tuple(Box(", "use a Box, Discrete or"),
    "ActionsAreMultiDiscrete": (
        "action_space",
        "Box of one dimension, or a Discrete",
        "MultiDiscrete([3 3])",
        "to a Discrete of",
    ),
    "HorizonIsAFraction": ("horizon must be a positive integer; found: 12.0", "set self.horizon"),
    "MakeVecTakesNoDevice": ("make_vec", "(task, episodes, device='cpu')", "too many positional", "default 'cpu'"),
    "RewardIsAnArray": ("reward of make at step 1 of task 0 must be a float; found: ndarray", "float(reward)"),
    "ObservationIsDouble": (
        "observation of make at step 0 of task 0",
        "float32; found: float64",
        "convert it, or mend",
    ),
    "RewardIsNotFinite": ("reward of make at step 3 of task 0 must be finite; found: nan", "look for a division"),
    "FlagIsAnInteger": ("terminated of make at step 1 of task 0 must be a bool; found: int", "bool(terminated)"),
    "OneStepTooMany": (
        "make:",
        "truncated at step 12, the horizon",
        "found: an episode that goes on",
        "count the steps",
    ),
    "EndsInBothWays": ("make:", "both at step 12", "truncated to steps >= horizon and not terminated"),
    "OldGymForm": ("make(task).reset(seed) must return (observation, info); found: ndarray", "return both"),
    "OldGymStep": ("make(task).step(action) must return (observation, reward,", "found: tuple of 4", "all five"),
    "MakeGivesNoEnvironment": ("make(task) must return a gymnasium.Env; found: env", "derive your environment from it"),
    "MakeHasAnotherSpace": (
        "make(task 0).action_space must equal the distribution's Box(-1.0, 1.0",
        "found: Box(-2.0, 2.0",
        "set action_space of the environment from",
    ),
    "ObservationIsAList": ("observation of make at step 1 of task 0 must be a numpy array; found: list", "convert it"),
    "ObservationIsARow": ("observation of make at step 1", "have shape (1,); found: (1, 1)", "reshape it"),
    "ObservationIsNotFinite": ("observation of make at step 3 of task 0 must be finite", "found: NaN or", "division"),
    "EnvUsesTheGlobalGenerator": (
        "make(task)",
        "same seed",
        "differs by up to",
        "self.np_random",
        "generator of torch",
    ),
    "ResetForgetsTheStart": ("make(task)", "after another episode, too; found: observation differs", "let reset set"),
    "OneEnvironmentForAll": (
        "environment must not change when make is called again; found: reward differs",
        "in its self",
    ),
    "EnvironmentsShareTheirPlace": ("environment must not change when", "another task is stepped", "not in class"),
    "MakeChangesTheTask": ("make must not write into the caller's task; found: other values in ['goal']", "a copy"),
    "MakeKeepsTheTask": ("make must not depend on what the caller writes", "found: reward differs", "not np.asarray"),
    "MakeKeepsTheTaskOfTwins": ("make must not depend on what the caller writes", "found: reward differs", "asarray"),
    "TheTaskIsIgnored": (
        "make(task) must depend on the task; found: the same",
        "all 3 tasks",
        "use the values in task",
    ),
    "OneEnvironmentATask": (
        "make_vec(3 tasks, 2 episodes).num_envs must be 6",
        "found: 3.",
        "for every episode of every",
    ),
    "EpisodeMajor": ("make_vec", "task 0 first", "found: the tasks in turn", "np.repeat(value, episodes, axis=0)"),
    "OtherReward": (
        "make_vec must behave as make; found: reward differs by up to",
        "first at step 1 in environment 4 (task 2, episode 0).",
        "side by side",
    ),
    "OtherRewardIfRandom": ("make_vec", "means of make", "found: mean return of task", "against", "+- 0", "np.repeat"),
    "OtherOrderIfRandom": ("make_vec", "means of make", "found: mean return of task", "against", "+- 0", "np.repeat"),
    "MakeVecGivesOneEnvironment": (
        "make_vec(3 tasks, 2 episodes)",
        "VectorEnv; found: WalkEnv",
        "derive yours from it",
    ),
    "MakeVecGivesOneEnvironmentForOne": ("make_vec(1 tasks, 1 episodes) must return", "found: WalkEnv", "derive yours"),
    "MakeVecHasAnotherSpace": (
        "make_vec(...).single_observation_space must equal the distribution's Box(-3.0, 3.0",
        "found: Box(-2.0, 2.0",
        "set single_observation_space of the environment",
    ),
    "VecObservationIsAList": (
        "observation of make_vec at step 1",
        "array or a torch tensor; found: list",
        "convert it",
    ),
    "VecResetForgetsTheStart": ("make_vec", "after other episodes, too; found: observation differs", "let reset set"),
    "VecEndsEarly": ("make_vec:", "truncated at step 12, the horizon", "found: truncated at step 11", "since reset"),
    "VecSaysNothingOfAutoreset": (
        "metadata['autoreset_mode'] of make_vec",
        "DISABLED; found: None",
        "put it into metadata",
    ),
    "VecResetsWhatHasEnded": (
        "make_vec: an ended environment must stay",
        "another observation and reward",
        "step 13",
        "remember",
    ),
    "VecPaysAfterTheEnd": (
        "make_vec: an ended environment",
        "reward 0",
        "found: another reward at step 13",
        "give them reward 0",
    ),
    "VecReturnsItsBuffer": ("observation that make_vec returned must stay", "found: other values", ".clone() in torch"),
    "VecKnowsNoMask": (
        "reset_mask",
        "must leave the other environments alone; found: other observations",
        "only there",
    ),
    "MaskForgetsAClock": ("reset_mask", "must count steps from 0", "found: an end one step too early", "step counts"),
    "MaskResetsAnotherClock": ("reset_mask", "must leave", "step counts alone; found: later ends", "only there"),
    "MaskBeginsElsewhere": ("reset_mask", "begin new episodes where mask is true", "no first observations there"),
    "OneNoiseForAll": (
        "make_vec must draw every episode of a task on its own",
        "found: the same",
        "noise of shape [num_envs",
    ),
    "VecIgnoresTheSeed": (
        "make_vec must begin other episodes with another seed",
        "found: the same",
        "seed every generator in",
    ),
    "VecHidesItsStarts": (
        "make_vec must begin other episodes with another seed",
        "found: the same",
        "seed every gener",
    ),
    "VecHasNoSeed": ("make_vec", "same numbers for the same seed", "seeds; now", "generator of numpy.random"),
    "OneVectorForAll": (
        "a vector environment must not change when another one is made",
        "reward differs",
        "shared object",
    ),
    "VecKeepsTheTask": (
        "make_vec must not depend on what the caller writes",
        "found: reward differs",
        "torch.from_numpy",
    ),
    "VecIsNotFinite": (
        "reward of make_vec at step 1 must be finite; found: inf in environment 5 (task 2, episode 1).",
        "look",
    ),
    "VecFlagsAreFloats": ("truncated of make_vec at step 1 must be 6 values of type bool", "of float64", "stack one"),
    "Raises": (
        "step() must work; found: KeyError: 'velocity', raised at",
        "test_checker.py:",
        "(in step).",
        "correct that",
    ),
    "VecRaises": ("step() must work; found: KeyError: 'velocity', raised at", "test_checker.py:", "correct that"),
    "VecHasNoMetadata": (
        "what it returns must be as documented; found: AttributeError: 'NoneType'",
        "TaskDistribution",
    ),
    "HoldsALambda": (
        "the distribution must survive pickling",
        "lambda",
        "classes of a module instead",
    ),
    "ForgetsWhenPickled": ("the distribution must be the same after pickling; found: other tasks", "__getstate__"),
}


def test_every_broken_one_is_in_the_table() -> None:
    assert {name for name in vars(Broken) if name[0] != "_"} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_error_is_named_and_nothing_else(name: str) -> None:
    if name == "VecSaysNothingOfAutoreset" and not AUTORESET:
        pytest.skip("Gymnasium 1.0 does not name its autoreset modes")
    found = problems(getattr(Broken, name)(), workers=name in {"HoldsALambda", "ForgetsWhenPickled"})
    assert len(found) == 1, found
    assert re.search(".*".join(map(re.escape, EXPECTED[name])), found[0]), found[0]
    assert re.match(r".* must .*; found: .*\. To mend it: .*\.$", found[0]), found[0]


def test_several_at_once() -> None:
    class Careless(Broken.SampleForgetsTheType, Broken.OneStepTooMany, Broken.EpisodeMajor):
        pass

    with pytest.raises(
        TaskDistributionError, match=r"(?s)Careless breaks .*; to be mended \(3\):\n  1\. .*\n  2\. .*\n  3\. "
    ) as info:
        check_task_distribution(Careless())
    assert [problem.split(" must ")[0] for problem in info.value.problems] == [
        "sample(...)['goal']",
        "make: an episode",
        "make_vec",
    ]
    assert info.value.unchecked == ()


def test_observations_outside_the_space() -> None:
    class Narrow(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = narrow = spaces.Box(-0.05, 0.05, (1,), np.float32)
            self.env = type("env", (WalkEnv,), {"observation_space": narrow})
            self.vec = type("vec", (WalkVec,), {"single_observation_space": narrow})

    one, many = problems(Narrow())
    assert re.match(r"observation of make at step \d+ of task 0 must lie inside Box\(-0.05, 0.05.*clip it", one)
    assert re.match(r"observation of make_vec at step \d+ must lie .*found: -?0\.\d+ in environment \d\. .*clip", many)


def test_observations_of_another_size() -> None:
    class Doubled(Walk):
        class vec(WalkVec):
            def reset(self, **kwargs: Any) -> Any:
                return np.repeat(super().reset(**kwargs)[0], 2, axis=1), {}

            def step(self, action: Any) -> Any:
                x, *rest = super().step(action)
                return np.repeat(x, 2, axis=1), *rest

    shape, behaviour = problems(Doubled())
    assert "observation of make_vec at step 0 must have shape (6, 1); found: (6, 2)" in shape
    assert (
        "make_vec must behave as make; found: observation differs by up to inf, first at step 0 in environment 0"
        in behaviour
    )


def test_what_could_not_be_checked_is_said() -> None:
    with pytest.raises(
        TaskDistributionError, match=r"Not checked before that is mended: .*make vec behaves as make"
    ) as info:
        check_task_distribution(Broken.SampleForgetsTheSize())
    assert "make gives an environment" in info.value.unchecked
    assert "action space is supported" not in info.value.unchecked


def test_an_empty_class_is_told_everything_it_lacks() -> None:
    found = [problem.split(" must ")[0] for problem in problems(object())]
    assert found == ["space", "observation_space", "action_space", "horizon", "sample", "make", "make_vec"]


def test_the_author_is_sent_to_their_own_file() -> None:
    """Not to the base class that called it."""

    class Wrong(Navigation):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"goal": super().sample(-num_tasks, rng)["goal"]}

    (problem,) = problems(Wrong())
    assert re.search(
        r"sample\(\) must work; found: ValueError: num_tasks must be .*test_checker\.py:\d+ \(in sample\)", problem
    )


def test_a_long_horizon_is_waited_for() -> None:
    class Long(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.horizon = 2500

    begin = time.perf_counter()
    found = problems(Long())
    assert time.perf_counter() - begin < 5.0  # 0.5 s, measured
    assert [re.sub(" must .*found", "", problem.split(". ")[0]) for problem in found] == [
        "make: an episode: truncated at step 12",
        "make_vec: an episode: truncated at step 12",
    ]


def test_an_end_is_waited_for() -> None:
    class Endless(Walk):
        class env(WalkEnv):
            def step(self, action: Any) -> Any:
                return *super().step(0.01 * action)[:2], False, False, {}

        class vec(WalkVec):
            def step(self, action: Any) -> Any:
                self.ended = np.zeros(self.num_envs, bool)
                return *super().step(0.01 * action)[:2], np.zeros_like(self.ended), np.zeros_like(self.ended), {}

        def __init__(self) -> None:
            super().__init__()
            self.horizon = 1200  # beyond the 1000 steps for which values are looked at

    assert [re.sub(r"\. To mend .*", "", problem) for problem in problems(Endless())] == [
        f"{call}: an episode must be truncated at step 1200, the horizon, if it has not terminated; "
        "found: an episode that goes on"
        for call in ("make", "make_vec")
    ]


def test_problems_before_an_exception_are_kept() -> None:
    def check(probe: Probe) -> Iterator[str]:
        yield "something is wrong"
        raise KeyError("goal")

    found = problems_of(check, Probe(Walk(), num_tasks=2, episodes=1, seed=0))
    assert found[0] == "something is wrong"
    assert "KeyError: 'goal'" in found[1]


def test_global_generators_are_left_as_they_were() -> None:
    def states() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]  # noqa: NPY002

    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002 (none is now as a seed leaves it)
    before = states()
    problems(Broken.SampleUsesTheGlobalGenerator())
    assert states() == before


@pytest.mark.parametrize("kwargs", [{"episodes": 0}, {"num_tasks": 1}, {"seed": -1}])
def test_bad_arguments(kwargs: Any) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(kwargs))} must be an integer"):
        check_task_distribution(Walk(), **kwargs)


def test_numbers_of_numpy_are_integers_too() -> None:
    check_task_distribution(NoisyWalk(), episodes=np.int64(2), num_tasks=np.int64(2), seed=np.int64(3))  # type: ignore[arg-type]


def test_every_check_comes_after_those_it_needs() -> None:
    checks = CHECKS | WORKER_CHECKS
    order = list(checks)
    assert all(order.index(need) < order.index(check) for check, needs in checks.items() for need in needs)


def test_the_error_travels_between_processes() -> None:
    error = TaskDistributionError("Careless", ["one", "two"], ["three"])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems, again.unchecked) == (str(error), ("one", "two"), ("three",))
