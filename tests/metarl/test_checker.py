"""The checker of task distributions: each small fault in a good one is named, with its fix, and nothing else."""

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.checker import TaskDistributionError, check_task_distribution
from metarl.envs.vector import AUTORESET
from tests.reference.walks import (
    NoisyWalk,
    SharedGeneratorVec,
    SharedGeneratorWalk,
    Walk,
    WalkEnv,
    WalkVec,
    env,
    vec,
    walk,
)


def problems(distribution: Any, **kwargs: Any) -> tuple[str, ...]:
    try:
        check_task_distribution(distribution, **kwargs)
    except TaskDistributionError as error:
        return error.problems
    return ()


def goals(num_tasks: int, rng: np.random.Generator) -> Any:
    return Walk().sample(num_tasks, rng)["goal"]


def sampled(goal: Callable[[int, np.random.Generator], Any]) -> Any:
    return walk(sample=lambda num_tasks, rng: {"goal": goal(num_tasks, rng)})


def not_finite(num_tasks: int, rng: np.random.Generator) -> Any:
    goal = goals(num_tasks, rng)
    goal[7:8] = np.nan
    return goal


def twins(num_tasks: int, rng: np.random.Generator) -> Any:
    goal = goals(num_tasks, rng)
    goal[1:2] = goal[:1]
    return {"goal": goal}


OWN = np.random.default_rng(0)
OF_THE_SPACE = {
    "sample forgets the size": (
        sampled(lambda n, rng: rng.uniform(-1.0, 1.0, 1).astype(np.float32)),
        "sample(3, rng)['goal'] ~ shape (3, 1) ~ got shape (1,). ~ size=(num_tasks, ...)",
    ),
    "sample squeezes one task": (
        sampled(lambda n, rng: goals(n, rng) if n > 1 else goals(n, rng).squeeze()),
        "sample(1, rng)['goal'] ~ shape (1, 1) ~ got shape () ~ size=(num_tasks, ...)",
    ),
    "sample has other keys": (
        walk(sample=lambda n, rng: {"gaol": goals(n, rng)}),
        "sample(3, rng) ~ keys of space, ['goal'] ~ ['gaol'] ~ the same names",
    ),
    "sample forgets the type": (
        sampled(lambda n, rng: rng.uniform(-1.0, 1.0, (n, 1))),
        "sample(...)['goal'] ~ float32; got float64 ~ .astype(float32)",
    ),
    "sample leaves the space": (
        sampled(lambda n, rng: rng.uniform(-1.0, 1.5, (n, 1)).astype(np.float32)),
        "sample(...)['goal'] ~ inside Box(-1.0, 1.0 ~ got 1. ~ in task ~ widen the bounds of space['goal']",
    ),
    "sample is not finite": (
        sampled(not_finite),
        "sample(...)['goal'] ~ finite; got NaN or infinity in task 7. ~ look for a wrong division",
    ),
    "sample uses the global generator": (
        sampled(lambda n, rng: np.random.uniform(-1.0, 1.0, (n, 1)).astype(np.float32)),  # noqa: NPY002
        "sample ~ global random ~ draws from numpy.random. ~ rng.uniform(...), not np",
    ),
    "sample has its own generator": (
        sampled(lambda n, rng: goals(n, OWN)),
        "sample ~ same tasks for the same rng; got different tasks ~ keep none in self",
    ),
    "sample ignores the generator": (
        sampled(lambda n, rng: goals(n, np.random.default_rng(0))),
        "sample ~ different tasks for different rngs; got identical ones ~ generator with a fixed seed",
    ),
    "sample copies the generator": (
        sampled(lambda n, rng: goals(n, copy.deepcopy(rng))),
        "sample ~ different tasks in the next call with the same rng; got identical ones ~ rng itself, not",
    ),
    "sample repeats one draw": (
        sampled(lambda n, rng: np.repeat(goals(1, rng), n, axis=0)),
        "sample(64, rng) ~ each task independently; got one task 64 times ~ size=(num_tasks, ...)",
    ),
    "space is missing": (walk(space=None), "space must be a gymnasium.spaces.Dict ~ got None ~ self.space = gymnasium"),
    "space is nested": (
        walk(space=spaces.Dict({"goal": spaces.Tuple(Walk().space.values())})),
        "space['goal'] must describe one array; got Tuple(Box( ~ use a Box, Discrete or",
    ),
    "actions are multi-discrete": (
        walk(action_space=spaces.MultiDiscrete([3, 3])),
        "action_space ~ Box of one dimension, or a Discrete ~ MultiDiscrete([3 3]) ~ into a Discrete of",
    ),
    "horizon is a fraction": (walk(horizon=12.0), "horizon must be a positive integer; got 12.0 ~ set self.horizon"),
    "make_vec takes no device": (
        walk(make_vec=lambda task, episodes: Walk().make_vec(task, episodes)),
        "make_vec ~ (task, episodes, device='cpu') ~ too many positional ~ default 'cpu'",
    ),
}


def from_torch(self: Any, x: Any, info: Any) -> Any:
    self.x = 0.05 * torch.randn(1).numpy()
    return self.x.copy(), info


def one_step_late(self: Any, x: Any, info: Any) -> Any:
    self.steps = -1
    return x, info


class Forgetful(WalkEnv):
    def reset(self, **kwargs: Any) -> Any:
        x = getattr(self, "x", np.zeros(1, np.float32))
        super().reset(**kwargs)
        self.x = x
        return self.x.copy(), {}


class SharedPlace(WalkEnv):
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


class Raising(WalkEnv):
    def step(self, action: Any) -> Any:
        if self.steps == 4:
            raise KeyError("velocity")
        return super().step(action)


ONLY = WalkEnv(None)


def the_only_one(task: Any) -> WalkEnv:
    ONLY.goal = np.array(task["goal"])
    return ONLY


def halving(task: Any) -> WalkEnv:
    task["goal"] *= 0.5
    return WalkEnv(2.0 * task["goal"])


def keeping(task: Any) -> WalkEnv:
    return WalkEnv(np.asarray(task["goal"]))


KEEPS = "make must not depend on what the caller later writes ~ got reward differs ~ not np.asarray"
OF_MAKE = {
    "make gives no environment": (
        walk(env=lambda goal, noise: "env"),
        "make(task) must return a gymnasium.Env; got str ~ derive the environment from",
    ),
    "make has another space": (
        walk(env=type("Other", (WalkEnv,), {"action_space": spaces.Box(-2.0, 2.0, (1,), np.float32)})),
        "action_space of make must equal the distribution's Box(-1.0, 1.0 ~ got Box(-2.0, 2.0 ~ set action_space of",
    ),
    "reset in the old form": (
        env(reset=lambda self, x, info: x),
        "make(task) must pass Gymnasium's check_env; got ~ `env.reset()` was not a tuple ~ return (observation, info)",
    ),
    "reset without options": (
        walk(env=type("Old", (WalkEnv,), {"reset": lambda self, *, seed=None: WalkEnv.reset(self, seed=seed)})),
        "make(task) must pass Gymnasium's check_env; got ~ `options` ~ define reset(self, *, seed=None, options=None)",
    ),
    "step in the old form": (
        env(lambda self, x, reward, terminated, truncated, info: (x, reward, terminated or truncated, info)),
        "make(task) must pass Gymnasium's check_env; got ~ old step API ~ return (observation, reward, terminated,",
    ),
    "info is missing": (
        env(lambda self, *result: (*result[:4], None)),
        "make(task) must pass Gymnasium's check_env; got ~ must be a python dictionary ~ return a dictionary as info",
    ),
    "reward is an array": (
        env(lambda self, x, reward, *rest: (x, np.array([reward]), *rest)),
        "make(task) must pass Gymnasium's check_env; got ~ reward returned by `step()` ~ ndarray ~ float(reward)",
    ),
    "flag is an integer": (
        env(lambda self, x, reward, terminated, *rest: (x, reward, int(terminated), *rest)),
        "make(task) must pass Gymnasium's check_env; got ~ `terminated` ~ 'int' ~ return bool(terminated)",
    ),
    "observation is a list": (
        env(lambda self, x, *rest: (x.tolist(), *rest)),
        "make(task) must pass Gymnasium's check_env; got ~ expecting a numpy array ~ 'list' ~ return a numpy array",
    ),
    "observation is double": (
        env(reset=lambda self, x, info: (x.astype(np.float64), info)),
        "observation of make(task 0) at step 0 ~ float32; got float64 ~ convert it",
    ),
    "observation is a row": (
        env(lambda self, x, *rest: (x[None], *rest)),
        "observation of make(task 0) at step 1 must have shape (1,); got (1, 1) ~ reshape it",
    ),
    "observation is not finite": (
        env(lambda self, x, *rest: (x if self.steps != 3 else x + np.float32(np.inf), *rest)),
        "observation of make(task 0) at step 3 must be finite ~ got NaN or ~ division",
    ),
    "reward is not finite": (
        env(lambda self, x, reward, *rest: (x, np.nan if self.steps == 3 else reward, *rest)),
        "reward of make(task 0) at step 3 must be finite; got nan ~ look for a wrong division",
    ),
    "one step too many": (
        env(reset=one_step_late),
        "an episode of make ~ truncated at step 12, the horizon ~ got an episode that goes on ~ count the steps",
    ),
    "ends in both ways": (
        env(lambda self, x, reward, terminated, truncated, info: (x, reward, terminated or truncated, truncated, info)),
        "an episode of make ~ both at step 12 ~ truncated to steps >= horizon and not terminated",
    ),
    "env uses the global generator": (
        env(reset=from_torch, base=NoisyWalk),
        "make ~ same seed ~ differs by up to ~ self.np_random ~ generator of torch",
    ),
    "reset forgets the start": (
        walk(env=Forgetful),
        "make ~ also after other episodes; got observation differs ~ let reset set",
    ),
    "one environment for all": (
        walk(make=the_only_one),
        "environment of make must not change when another one is made ~ reward differs ~ in its self",
    ),
    "environments share their place": (
        walk(env=SharedPlace),
        "environment of make must not change when another one is made and stepped ~ not in class",
    ),
    "make changes the task": (
        walk(make=halving),
        "make must not write into the caller's task; got other values in ['goal'] ~ a copy",
    ),
    "make keeps the task": (walk(make=keeping), KEEPS),
    "make keeps the task of twins": (walk(make=keeping, sample=twins), KEEPS),
    "the task is ignored": (
        walk(
            make=lambda task: WalkEnv(np.full(1, 0.5, np.float32)),
            make_vec=lambda task, n, device="cpu": WalkVec(np.full((len(task["goal"]) * n, 1), 0.5, np.float32)),
        ),
        "make(task) must depend on the task; got the same ~ all 3 tasks ~ use the values in task",
    ),
    "step raises": (
        walk(env=Raising),
        "step() must work; got KeyError: 'velocity', raised at ~ test_checker.py: ~ (in step). ~ correct it",
    ),
}


class ForgetsTheStart(WalkVec):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        x = self.x
        super().reset(seed=seed, options=options)
        self.x = self.x if options else x
        return self.x.copy(), {}


class ForgetsAClock(WalkVec):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        steps = self.steps
        result = super().reset(seed=seed, options=options)
        self.steps[0] = steps[0] if options else 0
        return result


class ResetsAnotherClock(WalkVec):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        result = super().reset(seed=seed, options=options)
        self.steps[-1] = 0
        return result


class BeginsElsewhere(WalkVec):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed, options=options)
        self.x = np.where(options["reset_mask"][:, None], np.float32(0.5), self.x) if options else self.x
        return self.x.copy(), {}


class ResetsWhatHasEnded(WalkVec):
    def step(self, action: Any) -> Any:
        if self.ended.any():
            self.reset(options={"reset_mask": self.ended.copy()})
        return super().step(action)


class RaisingVec(WalkVec):
    def step(self, action: Any) -> Any:
        if self.steps.max() == 4:
            raise KeyError("velocity")
        return super().step(action)


class KeepsTheTask(WalkVec):
    task: Any

    def step(self, action: Any) -> Any:
        self.goal = np.repeat(self.task, self.num_envs // len(self.task), axis=0)
        return super().step(action)


class OneNoise(WalkVec):
    def starts(self) -> Any:
        return np.repeat(super().starts()[:1], self.num_envs, axis=0)


class NoSeed(SharedGeneratorVec):
    def starts(self) -> Any:
        return super().starts() + np.random.normal() * self.noise  # noqa: NPY002


def episode_major(task: Any, episodes: int, device: Any = "cpu") -> Any:
    return WalkVec(np.tile(task["goal"], (episodes, 1)))


def episode_major_if_random(task: Any, episodes: int, device: Any = "cpu") -> Any:
    return SharedGeneratorVec(np.tile(task["goal"], (episodes, 1)), NoisyWalk.noise)


def alone_if_one(task: Any, episodes: int, device: Any = "cpu") -> Any:
    return WalkEnv(task["goal"][0]) if len(task["goal"]) * episodes == 1 else Walk().make_vec(task, episodes)


def keeping_vec(task: Any, episodes: int, device: Any = "cpu") -> Any:
    made = KeepsTheTask(np.repeat(task["goal"], episodes, axis=0))
    made.task = task["goal"]
    return made


ONLY_VEC = WalkVec(np.zeros((1, 1), np.float32))


def the_only_vec(task: Any, episodes: int, device: Any = "cpu") -> Any:
    ONLY_VEC.__init__(np.repeat(task["goal"], episodes, axis=0))  # type: ignore[misc]
    return ONLY_VEC


def start_early(self: Any, x: Any, info: Any) -> Any:
    self.steps = np.where(self.steps == 0, 1, self.steps)
    return x, info


def in_a_buffer(self: Any, x: Any, *rest: Any) -> Any:
    self.buffer = getattr(self, "buffer", np.zeros_like(x))
    self.buffer[:] = x
    return self.buffer, *rest


def infinite_at_the_end(self: Any, x: Any, reward: Any, *rest: Any) -> Any:
    reward[-1] = np.inf
    return x, reward, *rest


def less(self: Any, x: Any, reward: Any, *rest: Any) -> Any:
    return x, 0.9 * reward, *rest


def with_reset(**fixed: Any) -> Any:
    def reset(self: Any, *, seed: int | None = None, options: Any = None) -> Any:
        return WalkVec.reset(self, **{"seed": seed, "options": options} | fixed)

    return type("Reset", (WalkVec,), {"reset": reset})


MEANS = "make_vec ~ means of make ~ got mean return ~ instead of ~ +- 0. ~ in task ~ np.repeat"
SEEDS = "make_vec must give different episodes for different seeds, as make does; got identical ones ~ seed every gener"
OF_MAKE_VEC = {
    "one environment a task": (
        walk(make_vec=lambda task, episodes, device="cpu": WalkVec(np.array(task["goal"]))),
        "make_vec(3 tasks, 2 episodes).num_envs must be 6 ~ got 3. ~ one environment per episode of each",
    ),
    "episode-major": (
        walk(make_vec=episode_major),
        "make_vec ~ task 0 first ~ got the tasks in turn ~ np.repeat(value, episodes, axis=0)",
    ),
    "other reward": (
        vec(less),
        "make_vec must behave as make; got reward differs by up to ~ first at step 1 in environment 4 (task 2,"
        " episode 0). ~ side by side",
    ),
    "other reward if random": (vec(less, base=SharedGeneratorWalk), MEANS),
    "other order if random": (walk(SharedGeneratorWalk, make_vec=episode_major_if_random), MEANS),
    "make_vec gives one environment": (
        walk(vec=WalkEnv),
        "make_vec(3 tasks, 2 episodes) ~ VectorEnv; got WalkEnv ~ derive it from",
    ),
    "make_vec gives one environment for one": (
        walk(make_vec=alone_if_one),
        "make_vec(1 tasks, 1 episodes) must return ~ got WalkEnv ~ derive it",
    ),
    "make_vec has another space": (
        walk(vec=type("Other", (WalkVec,), {"single_observation_space": spaces.Box(-2.0, 2.0, (1,), np.float32)})),
        "single_observation_space of make_vec must equal the distribution's Box(-3.0, 3.0 ~ got Box(-2.0, 2.0"
        " ~ set single_observation_space of the environment",
    ),
    "reset in the old form": (
        vec(reset=lambda self, x, info: x),
        "make_vec(3 tasks, 2 episodes).reset(seed) must return (observation, info); got ndarray ~ {}",
    ),
    "step in the old form": (
        vec(lambda self, x, reward, terminated, truncated, info: (x, reward, terminated | truncated, info)),
        "make_vec(3 tasks, 2 episodes).step(action) must return (observation, reward, ~ got tuple of 4 ~ two flags",
    ),
    "observation is a list": (
        vec(lambda self, x, *rest: (x.tolist(), *rest)),
        "observation of make_vec at step 1 ~ array or a torch tensor; got list ~ convert it",
    ),
    "reset forgets the start": (
        walk(vec=ForgetsTheStart),
        "make_vec ~ also after other episodes; got observation differs ~ let reset set",
    ),
    "ends early": (
        vec(reset=start_early),
        "an episode of make_vec ~ truncated at step 12, the horizon ~ got truncated at step 11 ~ since reset",
    ),
    "says nothing of autoreset": (
        walk(vec=type("Silent", (WalkVec,), {"metadata": {}})),
        "metadata['autoreset_mode'] of make_vec ~ DISABLED; got None ~ set it in metadata",
    ),
    "resets what has ended": (
        walk(vec=ResetsWhatHasEnded),
        "an ended environment of make_vec must stay ~ another observation and reward ~ step 13 ~ keep",
    ),
    "pays after the end": (
        vec(lambda self, x, reward, *rest: (x, -abs(x - self.goal)[:, 0], *rest)),
        "an ended environment of make_vec ~ reward 0 ~ got another reward at step 13 ~ give it reward 0",
    ),
    "returns its buffer": (
        vec(in_a_buffer),
        "observation that make_vec returned must not change ~ got other values ~ .clone() in torch",
    ),
    "knows no mask": (
        walk(vec=with_reset(options=None)),
        "reset_mask ~ must not change the other environments; got other observations ~ only there",
    ),
    "mask forgets a clock": (
        walk(vec=ForgetsAClock),
        "reset_mask ~ must count steps from 0 ~ got an end one step too early ~ step counts",
    ),
    "mask resets another clock": (
        walk(vec=ResetsAnotherClock),
        "reset_mask ~ must keep the step counts of the other environments; got a later end ~ only there",
    ),
    "mask begins elsewhere": (
        walk(vec=BeginsElsewhere),
        "reset_mask ~ begin new episodes where mask is true; got other observations there",
    ),
    "one noise for all": (
        walk(NoisyWalk, vec=OneNoise),
        "make_vec must draw every episode of a task independently ~ got identical ones ~ noise of shape [num_envs",
    ),
    "ignores the seed": (walk(NoisyWalk, vec=with_reset(seed=5)), SEEDS),
    "hides its starts": (
        vec(reset=lambda self, x, info: (np.where(self.steps[:, None] == 0, np.float32(0.0), x), info), base=NoisyWalk),
        SEEDS,
    ),
    "has no seed": (
        walk(NoisyWalk, vec=NoSeed),
        "make_vec ~ same numbers for the same seed ~ seeds; now ~ generator of numpy.random",
    ),
    "one vector for all": (
        walk(make_vec=the_only_vec),
        "an environment of make_vec must not change when another one is made ~ reward differs ~ shared object",
    ),
    "keeps the task": (
        walk(make_vec=keeping_vec),
        "make_vec must not depend on what the caller later writes ~ got reward differs ~ torch.from_numpy",
    ),
    "is not finite": (
        vec(infinite_at_the_end),
        "reward of make_vec at step 1 must be finite; got inf in environment 5 (task 2, episode 1). ~ look",
    ),
    "flags are floats": (
        vec(
            lambda self, x, reward, terminated, truncated, info: (x, reward, terminated, truncated.astype(float), info)
        ),
        "truncated of make_vec at step 1 must be 6 values of type bool ~ of float64 ~ stack one",
    ),
    "raises": (
        walk(vec=RaisingVec),
        "step() must work; got KeyError: 'velocity', raised at ~ test_checker.py: ~ correct it",
    ),
    "has no metadata": (
        walk(vec=type("Bare", (WalkVec,), {"metadata": None})),
        "what is returned must be as documented; got AttributeError: 'NoneType' ~ TaskDistribution",
    ),
}


class Forgets(Walk):
    """A lower bound that is lost when it is pickled."""

    low = -1.0

    def __init__(self) -> None:
        super().__init__()
        self.low = -0.5

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"goal": rng.uniform(self.low, 1.0, (num_tasks, 1)).astype(np.float32)}

    def __getstate__(self) -> Any:
        return {name: value for name, value in vars(self).items() if name != "low"}


OF_PICKLING = {
    "holds a lambda": (
        walk(reward=lambda x: -x),
        "the distribution must survive pickling ~ lambda ~ classes of a module",
    ),
    "forgets": (Forgets(), "the distribution must be the same after pickling; got other tasks ~ __getstate__"),
}

FAULTS = {
    f"{of}: {name}": row
    for of, table in {"space": OF_THE_SPACE, "make": OF_MAKE, "make_vec": OF_MAKE_VEC, "pickling": OF_PICKLING}.items()
    for name, row in table.items()
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_and_nothing_else(name: str) -> None:
    """The parts of the message stand in this order: what was wanted, what was found, how to fix it."""
    if "autoreset" in name and not AUTORESET:
        pytest.skip("Gymnasium 1.0 does not name its autoreset modes")
    distribution, parts = FAULTS[name]
    found = problems(distribution, workers="pickling" in name)
    assert len(found) == 1, found
    assert re.search(".*".join(map(re.escape, parts.split(" ~ "))), found[0]), found[0]
    assert re.match(r".* must .*; got .*\. Fix: .*\.$", found[0]), found[0]
