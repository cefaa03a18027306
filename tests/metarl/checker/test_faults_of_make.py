"""The checker of task distributions: each small fault in `space`, `sample` or `make` is named, with its fix."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.reference.walks import Fault, NoisyWalk, Walk, WalkEnv, WalkVec, check_fault, env, walk


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
OF_SAMPLE: dict[str, Fault] = {
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
    "actions are a table": (
        walk(action_space=spaces.MultiDiscrete([[3, 3]])),
        "action_space ~ Box, MultiDiscrete or MultiBinary of one ~ MultiDiscrete([[3 3]]) ~ flatten arrays",
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
OF_MAKE: dict[str, Fault] = {
    "make gives no environment": (
        walk(env=lambda goal, noise: "env"),
        "make(task) must return a gymnasium.Env; got str ~ derive it from",
    ),
    "make has another space": (
        walk(env=type("Other", (WalkEnv,), {"action_space": spaces.Box(-2.0, 2.0, (1,), np.float32)})),
        "action_space of make must equal the distribution's Box(-1.0, 1.0 ~ got Box(-2.0, 2.0 ~ set action_space of",
    ),
    "reset in the old form": (
        env(reset=lambda self, x, info: x),
        "make(task).reset(seed) must return (observation, info); got ndarray of length 1 ~ info may be {}",
    ),
    "reset without options": (
        walk(env=type("Old", (WalkEnv,), {"reset": lambda self, *, seed=None: WalkEnv.reset(self, seed=seed)})),
        "make(task).reset must take seed and options; got ~ 'options' ~ define reset(self, *, seed=None, options=None)",
    ),
    "step in the old form": (
        env(lambda self, x, reward, terminated, truncated, info: (x, reward, terminated or truncated, info)),
        "make(task).step(action) must return (observation, reward, terminated, ~ got tuple of length 4 ~ return all",
    ),
    "info is missing": (
        env(lambda self, *result: (*result[:4], None)),
        "make(task).step(action) must return ~ info is a dictionary; got NoneType ~ return a dictionary as info",
    ),
    "reward is an array": (
        env(lambda self, x, reward, *rest: (x, np.array([reward]), *rest)),
        "reward of make(task 0) at step 1 must be one float; got shape (1,) of float64 ~ float(reward)",
    ),
    "flag is an integer": (
        env(lambda self, x, reward, terminated, *rest: (x, reward, int(terminated), *rest)),
        "terminated of make(task 0) at step 1 must be one bool; got ~ int64 ~ return bool(terminated)",
    ),
    "observation is a list": (
        env(lambda self, x, *rest: (x.tolist(), *rest)),
        "observation of make(task 0) at step 1 must be a numpy array; got list ~ return a numpy array",
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
        "an episode of make ~ truncated at step 12, the horizon ~ got an episode that continues ~ count the steps",
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
        "step() must work; got KeyError: 'velocity', raised at ~ test_faults_of_make.py: ~ (in step). ~ correct it",
    ),
}


@pytest.mark.parametrize("name", OF_SAMPLE)
def test_faults_of_sample(name: str) -> None:
    check_fault(OF_SAMPLE[name])


@pytest.mark.parametrize("name", OF_MAKE)
def test_faults_of_make(name: str) -> None:
    check_fault(OF_MAKE[name])
