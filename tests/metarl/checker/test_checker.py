"""The checker of task distributions: what is no fault, several faults at once, its arguments, error and warnings."""

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
from gymnasium.spaces import Box, Dict, Discrete

from metarl.checker import CHECKS, TaskDistributionError, check_task_distribution
from metarl.checker.probe import Probe, find_problems, random_actions
from metarl.envs import ENVS, GymDistribution, Navigation, make_distribution
from metarl.envs.grid_world import GridWorld
from tests.reference.walks import NoisyWalk, SharedGeneratorWalk, Walk, WalkEnv, WalkVec, changed, vec, walk


class SparseWalk(Walk):
    """A reward of 1 where the walk ends: random actions may never meet it, which is no error."""

    env = changed(WalkEnv, lambda self, x, reward, terminated, *rest: (x, float(terminated), terminated, *rest))

    class vec(WalkVec):
        def step(self, action: Any) -> Any:
            running = ~self.ended
            x, _, terminated, *rest = super().step(action)
            return x, (terminated & running).astype(float), terminated, *rest

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"goal": rng.uniform(0.95, 1.0, (num_tasks, 1)).astype(np.float32)}


class WalkByNumber(Walk):
    """Discrete actions, looked up in a dictionary as Gymnasium's FrozenLake does: a 0-d array would not be found."""

    MOVES: Any = {0: -1.0, 1: 1.0}  # noqa: RUF012

    class env(WalkEnv):
        action_space = Discrete(2)  # type: ignore[assignment]

        def step(self, action: Any) -> Any:
            return super().step(np.float32(WalkByNumber.MOVES[action]))

    class vec(WalkVec):
        single_action_space = Discrete(2)  # type: ignore[assignment]

        def step(self, action: Any) -> Any:
            return super().step(np.float32([[WalkByNumber.MOVES[a]] for a in action]))

    def __init__(self) -> None:
        super().__init__()
        self.action_space = Discrete(2)


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


class UnseededWalk(Walk):
    """Nothing in it is random, so it leaves Gymnasium's generator alone; its truncation is a boolean of numpy."""

    class env(WalkEnv):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.x, self.steps = np.zeros(1, np.float32), 0
            return self.x.copy(), {}

        def step(self, action: Any) -> Any:
            *others, truncated, info = super().step(action)
            return *others, np.bool_(truncated), info


class OneGoal(Walk):
    """All tasks are the same, as `space` says."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Dict({"goal": Box(0.5, 0.5, (1,), np.float32)})

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"goal": np.full((num_tasks, 1), 0.5, np.float32)}


GRIDS = [functools.partial(GridWorld, image=image, horizon=10) for image in (False, True)]
WALKS = [Walk, NoisyWalk, SharedGeneratorWalk, SparseWalk, WalkByNumber, WalkInPlace, UnseededWalk, OneGoal]


@pytest.mark.parametrize("good", [*WALKS, *GRIDS], ids=str)
def test_good_ones_have_no_problems(good: Callable[[], Any]) -> None:
    assert check_task_distribution(good(), workers=True) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("seed", [1, 2])
def test_any_seed_will_do(seed: int) -> None:
    for good in (NoisyWalk, SharedGeneratorWalk):
        check_task_distribution(good(), seed=seed, episodes=seed, num_tasks=2)


EXACT = ["navigation", "navigation_ring", "point_velocity", "gaussian_bandit", "tabular_mdp", "linear_gaussian"]


@pytest.mark.parametrize("name", EXACT)
def test_registered_ones_have_no_problems(name: str) -> None:
    assert name in ENVS
    short = {"horizon": min(10, make_distribution(name).horizon)}  # to save time
    check_task_distribution(make_distribution(name, **short), workers=True)


def found_in(distribution: Any, **kwargs: Any) -> TaskDistributionError:
    with pytest.raises(TaskDistributionError) as caught:
        check_task_distribution(distribution, **kwargs)
    return caught.value


def doubles(num_tasks: int, rng: np.random.Generator) -> Any:
    return {"goal": rng.uniform(-1.0, 1.0, (num_tasks, 1))}


def test_several_at_once() -> None:
    late = changed(WalkEnv, lambda self, x, reward, terminated, truncated, info: (x, reward, terminated, False, info))
    tiled = walk(
        make_vec=lambda task, n, device="cpu": WalkVec(np.tile(task["goal"], (n, 1))), env=late, sample=doubles
    )
    error = found_in(tiled)
    assert re.match(r"(?s)Walk is not a valid .*; problems \(3\):\n  1\. .*\n  2\. .*\n  3\. ", str(error))
    subjects = [problem.split(" must ")[0] for problem in error.problems]
    assert subjects == ["sample(...)['goal']", "an episode of make", "make_vec"]
    assert error.unchecked == ()


def test_observations_outside_the_space() -> None:
    narrow = Box(-0.05, 0.05, (1,), np.float32)
    one, many = found_in(
        walk(
            observation_space=narrow,
            env=type("Env", (WalkEnv,), {"observation_space": narrow}),
            vec=type("Vec", (WalkVec,), {"single_observation_space": narrow}),
        )
    ).problems
    assert re.match(r"observation of make\(task 0\) at step \d+ must lie inside Box\(-0.05, 0.05.*widen", one)
    assert re.match(r"observation of make_vec at step \d+ must lie .*got -?0\.\d+ in environment \d \(.*widen", many)


def test_observations_of_another_size() -> None:
    def twice(self: Any, x: Any, *rest: Any) -> Any:
        return np.repeat(x, 2, axis=1), *rest

    shape, behaviour = found_in(vec(twice, twice)).problems
    assert "observation of make_vec at step 0 must have shape (6, 1); got (6, 2)" in shape
    expected = "make_vec must behave as make; got observation differs by up to inf, first at step 0 in environment 0"
    assert expected in behaviour


def test_what_could_not_be_checked_is_listed() -> None:
    error = found_in(walk(sample=lambda num_tasks, rng: {"goal": np.zeros(1, np.float32)}))
    assert re.search(r"Not checked until these are fixed: .*make vec behaves as make", str(error))
    assert "make gives an environment" in error.unchecked
    assert "methods take the documented arguments" not in error.unchecked


def test_an_empty_class_is_told_everything_it_lacks() -> None:
    found = [problem.split(" must ")[0] for problem in found_in(object()).problems]
    assert found == ["space", "observation_space", "action_space", "horizon", "sample", "make", "make_vec"]


def test_the_author_is_sent_to_their_own_file() -> None:
    """Not to the base class that called it."""

    class Wrong(Navigation):
        def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
            return {"goal": super().sample(-num_tasks, rng)["goal"]}

    (problem,) = found_in(Wrong()).problems
    place = r"sample\(\) must work; got ValueError: num_tasks must be .*test_checker\.py:\d+ \(in sample\)"
    assert re.search(place, problem)


def test_a_long_horizon_is_waited_for() -> None:
    begin = time.perf_counter()
    found = found_in(walk(horizon=2500)).problems
    assert time.perf_counter() - begin < 5.0  # 0.5 s, measured
    assert [re.sub(" must .*got", ":", problem.split(". ")[0]) for problem in found] == [
        f"an episode of {call}: truncated at step 12" for call in ("make", "make_vec")
    ]


def test_an_end_is_waited_for() -> None:
    class Endless(WalkEnv):
        def step(self, action: Any) -> Any:
            return *super().step(0.01 * action)[:2], False, False, {}

    class EndlessVec(WalkVec):
        def step(self, action: Any) -> Any:
            self.ended = np.zeros(self.num_envs, bool)
            return *super().step(0.01 * action)[:2], np.zeros_like(self.ended), np.zeros_like(self.ended), {}

    horizon = 1200  # beyond the 1000 steps for which values are checked
    found = found_in(walk(env=Endless, vec=EndlessVec, horizon=horizon)).problems
    assert [problem.split(". Fix")[0] for problem in found] == [
        f"an episode of {call} must be truncated at step 1200, the horizon, if it has not terminated; "
        "got an episode that continues"
        for call in ("make", "make_vec")
    ]


def test_problems_before_an_exception_are_kept() -> None:
    def check(probe: Probe) -> Iterator[str]:
        yield "something is wrong"
        raise KeyError("goal")

    found = find_problems(check, Probe(Walk(), num_tasks=2, episodes=1, seed=0))
    assert found[0] == "something is wrong"
    assert "KeyError: 'goal'" in found[1]


def test_global_generators_are_left_as_they_were() -> None:
    def states() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]  # noqa: NPY002

    def draw(num_tasks: int, rng: Any) -> Any:
        return {"goal": np.float32(np.random.uniform(-1.0, 1.0, (num_tasks, 1)))}  # noqa: NPY002

    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002 (none is now as a seed leaves it)
    before = states()
    found_in(walk(sample=draw))
    assert states() == before


@pytest.mark.parametrize("kwargs", [{"episodes": 0}, {"num_tasks": 1}, {"seed": -1}])
def test_bad_arguments(kwargs: Any) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(kwargs))} must be an integer"):
        check_task_distribution(Walk(), **kwargs)


def test_numbers_of_numpy_are_integers_too() -> None:
    check_task_distribution(NoisyWalk(), episodes=np.int64(2), num_tasks=np.int64(2), seed=np.int64(3))  # type: ignore[arg-type]


def test_every_check_comes_after_those_it_needs() -> None:
    order = list(CHECKS)
    assert all(order.index(need) < order.index(name) for name, (_, needs) in CHECKS.items() for need in needs)


def test_the_error_travels_between_processes() -> None:
    error = TaskDistributionError("Careless", ["one", "two"], ["three"])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems, again.unchecked) == (str(error), ("one", "two"), ("three",))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_random_integer_actions_reach_both_bounds(dtype: Any) -> None:
    space = Box(1, 4, (2,), dtype)
    actions = random_actions(space, (200,), np.random.default_rng(0))
    assert actions.dtype == dtype
    assert set(np.unique(actions)) == {1, 2, 3, 4}


class Far(gymnasium.Env[Any, Any]):
    """A walk with costs; the task is a goal that random actions do not reach in an episode."""

    observation_space, action_space = Box(-np.inf, np.inf, (1,), np.float32), Box(20.0, 30.0, (1,), np.float32)

    def __init__(self, goal: float = 0.0) -> None:
        self.goal, self.episodes = goal, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = np.zeros(1, np.float32)
        self.episodes += 1
        return self.x.copy(), {}

    def step(self, action: Any) -> Any:
        self.x = self.x + np.float32(0.001) * (action - 25)
        reached = bool(self.x[0] > self.goal)
        return self.x.copy(), 1.0 if reached else -float(abs(self.x[0])), reached, False, {}


GOALS = Dict({"goal": Box(50.0, 90.0, (), np.float32)})


def test_tasks_that_differ_only_at_the_goal_have_a_waiver() -> None:
    tasks = GymDistribution(Far, GOALS, horizon=60)
    with pytest.raises(
        TaskDistributionError, match=r"depend on the task.*waive=\['tasks_make_a_difference'\]"
    ) as caught:
        check_task_distribution(tasks)
    assert len(caught.value.problems) == 1
    with pytest.warns(UserWarning, match=r"100% of N\(0, 1\)"):  # nothing else is wrong, but the actions
        check_task_distribution(tasks, waive=["tasks_make_a_difference"])


def test_waivers_are_of_checks_that_there_are() -> None:
    tasks = make_distribution("navigation", horizon=3)
    with pytest.raises(ValueError, match=r"waive must be one of.*did you mean 'tasks_make_a_difference'"):
        check_task_distribution(tasks, waive=["tasks_make_difference"])
    with pytest.raises(
        ValueError, match=r"waive must be a collection of names, such as \['spaces_and_horizon_are_supported'\]"
    ):
        check_task_distribution(tasks, waive="spaces_and_horizon_are_supported")
    check_task_distribution(tasks, waive={"spaces_and_horizon_are_supported", "survives_pickling"})


def remember(env: Any, task: dict[str, Any]) -> None:
    env.goal = task["goal"]


class Tired(Far):
    """Pays less with every episode since it was made."""

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward - 0.1 * self.episodes, *rest


class Drifting(Far):
    """Begins where the last episode ended, unless it is new."""

    x = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        kept = self.x
        super().reset(seed=seed)
        self.x = kept
        return self.x.copy(), {}


class Mixture(Far):
    """A set_task that leaves something of the task before."""

    before = 0.0

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward - 0.01 * self.before, *rest


def remember_the_last(env: Any, task: dict[str, Any]) -> None:
    env.before, env.goal = env.goal, task["goal"]


def made_up() -> gymnasium.Env[Any, Any]:
    """A wrapper whose function has a state."""
    total = [0.0]

    def transform(reward: Any) -> float:
        total[0] += 0.001
        return float(reward) + total[0]

    return gymnasium.wrappers.TransformReward(Far(), transform)


@pytest.mark.parametrize(
    ("env", "set_task"),
    [(Tired, remember), (Drifting, remember), (Mixture, remember_the_last), (made_up, remember)],
)
def test_environments_that_remember_are_noticed(env: Any, set_task: Any) -> None:
    """Evaluation would change training: the same seed and task must give the same, whatever was done before."""
    tasks = GymDistribution(env, GOALS, horizon=30, set_task=set_task)
    with pytest.raises(TaskDistributionError, match=r"same seed and actions|make_vec must behave as make"):
        check_task_distribution(tasks, waive=["tasks_make_a_difference"])
