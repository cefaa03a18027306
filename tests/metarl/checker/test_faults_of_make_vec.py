"""The checker of task distributions: each small fault in `make_vec` or in pickling is named, with its fix."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from metarl.envs.vector import AUTORESET
from tests.reference.walks import (
    Fault,
    NoisyWalk,
    SharedGeneratorVec,
    SharedGeneratorWalk,
    Walk,
    WalkEnv,
    WalkVec,
    check_fault,
    vec,
    walk,
)


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
OF_MAKE_VEC: dict[str, Fault] = {
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
        "make_vec must behave as make; got reward differs by up to ~ first at step 1 in environment 5 (task 2,"
        " episode 1). ~ side by side",
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
        "make_vec(3 tasks, 2 episodes).reset(seed) must return (observation, info); got ndarray of length 6",
    ),
    "step in the old form": (
        vec(lambda self, x, reward, terminated, truncated, info: (x, reward, terminated | truncated, info)),
        "make_vec(3 tasks, 2 episodes).step(action) must return (observation, reward, ~ got tuple of length 4 ~ all",
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
        "step() must work; got KeyError: 'velocity', raised at ~ test_faults_of_make_vec.py: ~ correct it",
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


OF_PICKLING: dict[str, Fault] = {
    "holds a lambda": (
        walk(reward=lambda x: -x),
        "the distribution must survive pickling ~ lambda ~ classes of a module",
    ),
    "forgets": (Forgets(), "the distribution must be the same after pickling; got other tasks ~ __getstate__"),
}


@pytest.mark.parametrize("name", OF_MAKE_VEC)
def test_faults_of_make_vec(name: str) -> None:
    if name == "says nothing of autoreset" and not AUTORESET:
        pytest.skip("Gymnasium 1.0 does not name its autoreset modes")
    check_fault(OF_MAKE_VEC[name])


@pytest.mark.parametrize("name", OF_PICKLING)
def test_faults_of_pickling(name: str) -> None:
    check_fault(OF_PICKLING[name], workers=True)
