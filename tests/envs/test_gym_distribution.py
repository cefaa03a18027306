"""Any Gymnasium environment as a task distribution, in this process; `test_workers.py` has the processes."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, DependencyNotInstalled, ResetNeeded
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple

from metarl.envs.gym_distribution import GymDistribution
from tests.envs.toy_envs import (
    BREAK,
    DISTRIBUTIONS,
    LENGTH,
    Countdown,
    Pictures,
    countdown,
    limited_countdown,
    pendulum,
    random_actions,
    set_length,
)

T, E = 3, 2
each = pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
G = Dict({"g": Box(5.0, 15.0, (), np.float32)})


@pytest.fixture(autouse=True)
def instances() -> Iterator[list[Countdown]]:
    Countdown.instances.clear()
    yield Countdown.instances
    Countdown.instances.clear()


def sampled(tasks: GymDistribution) -> dict[str, Any]:
    return tasks.sample(T, np.random.default_rng(0))


@each
def test_together_equals_one_by_one(name: str) -> None:
    tasks = DISTRIBUTIONS[name]()
    task = sampled(tasks)
    together = tasks.make_vec(task, E)
    alone = [tasks.make({k: v[t] for k, v in task.items()}) for t in range(T) for _ in range(E)]  # task-major
    expected = [
        np.stack([env.reset(seed=7 + i)[0] for i, env in enumerate(alone)]),
        [0.0] * 6,
        [False] * 6,
        [False] * 6,
    ]
    np.testing.assert_array_equal(together.reset(seed=7)[0], expected[0])
    rewards_seen = set()
    for actions in random_actions(tasks, tasks.horizon + 2, T * E):
        for i, env in enumerate(alone):
            expected[1][i] = 0.0
            if not (expected[2][i] or expected[3][i]):
                for column, value in zip(expected, env.step(actions[i].copy())[:4], strict=True):
                    column[i] = value
        got = together.step(actions)
        rewards_seen |= set(got[1])
        for column, value in zip(expected, got[:4], strict=True):
            np.testing.assert_array_equal(value, column)
    assert got[4] == {}
    assert [x.dtype for x in got[:4]] == [tasks.observation_space.dtype, np.float64, bool, bool]
    assert got[0].shape == (T * E, *tasks.observation_space.shape)
    assert (got[2] != got[3]).all()
    assert got[2].any() == (name != "pendulum")  # that one does not terminate
    assert len(rewards_seen) > 1 or "lake" in name  # there the goal is hard to reach


@each
def test_what_is_returned_belongs_to_the_caller(name: str) -> None:
    tasks = DISTRIBUTIONS[name]()
    written, untouched = (tasks.make_vec(sampled(tasks), E) for _ in range(2))
    actions = random_actions(tasks, 3, T * E)
    kept = actions.copy()
    written.reset(seed=0)[0].fill(1)
    untouched.reset(seed=0)
    for action in actions[:2]:
        for array in written.step(action)[:4]:
            array.fill(1)
        untouched.step(action)
    for a, b in zip(written.step(actions[2])[:4], untouched.step(actions[2])[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(actions, kept)


@each
def test_pickled_and_copied_it_gives_the_same(name: str) -> None:
    tasks = DISTRIBUTIONS[name]()
    tasks.make_vec(sampled(tasks), E).reset(seed=3)  # leaves idle environments behind, where there is a set_task
    expected = tasks.make_vec(sampled(tasks), E).reset(seed=0)[0]
    for other in (pickle.loads(pickle.dumps(tasks)), copy.deepcopy(tasks)):
        assert other._store._idle == []  # live environments stay where they are
        np.testing.assert_array_equal(other.make_vec(sampled(other), E).reset(seed=0)[0], expected)


def test_same_seed_same_numbers_and_no_seed_others() -> None:
    env = countdown().make_vec({"length": [1, 2]}, 2)
    first, other, unseeded = (env.reset(seed=seed)[0] for seed in (5, 6, None))
    np.testing.assert_array_equal(env.reset(seed=5)[0], first)
    np.testing.assert_array_equal(first[1:], other[:-1])  # environment i has seed + i
    assert not np.isin(unseeded[:, 1], first[:, 1]).any()
    np.testing.assert_array_equal(env.reset(seed=np.int64(5))[0], first)


def test_terminated_on_the_last_step_is_not_truncated() -> None:
    tasks = countdown()  # horizon 3
    env = tasks.make_vec({"length": [2, 3, 4]}, 1)
    env.reset(seed=0)
    ends = [np.stack(env.step(np.zeros(3, int))[2:4]).tolist() for _ in range(3)]
    assert ends == [
        [[False, False, False], [False, False, False]],
        [[True, False, False], [False, False, False]],
        [[True, True, False], [False, False, True]],
    ]
    alone = tasks.make({"length": 3})
    alone.reset(seed=0)
    assert [alone.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (True, False)]


@pytest.mark.parametrize("limit", [3, 8])
@pytest.mark.parametrize("env", ["metarl-toys/Countdown-v0", "metarl-toys/Wrapped-v0", limited_countdown])
def test_the_horizon_replaces_the_registered_one(env: Any, limit: int) -> None:
    assert GymDistribution(env, LENGTH).horizon == (4 if isinstance(env, str) else 2)
    alone = GymDistribution(env, LENGTH, horizon=limit).make({"length": 100})
    alone.reset()
    ends = [alone.step(0)[3] for _ in range(limit)]
    assert ends == [False] * (limit - 1) + [True]
    if env == "metarl-toys/Countdown-v0":
        assert alone.spec is not None
        assert alone.spec.max_episode_steps == limit


def test_the_module_of_an_id_is_imported() -> None:
    assert GymDistribution("tests.envs.toy_envs:metarl-toys/Countdown-v0", LENGTH).horizon == 4


def test_parameters_are_scalars_and_arrays_of_their_own() -> None:
    seen = []

    def note(env: Any, task: dict[str, Any]) -> None:
        seen.append(task)

    space = Dict({"a": Box(0.0, 1.0, (), np.float32), "b": Discrete(3), "c": Box(0, 1, (2,), np.float32)})
    tasks = GymDistribution(Countdown, space, horizon=3, set_task=note, env_kwargs={"length": 7})
    seen.clear()
    given = np.array([[0.25, 0.75]], np.float32)
    tasks.make_vec({"a": [0.5], "b": [2], "c": given}, 2)
    assert [{k: type(v) for k, v in task.items()} for task in seen] == [{"a": float, "b": int, "c": np.ndarray}] * 2
    seen[0]["c"][:] = 9.0
    assert seen[1]["c"].tolist() == given[0].tolist() == [0.25, 0.75]
    assert Countdown.instances[-1].length == 7


def test_tasks_reach_their_environments() -> None:
    env = pendulum().make_vec({"g": [5.0, 15.0]}, 2)
    assert [one.unwrapped.g for one in env._stepper._envs] == [5.0, 5.0, 15.0, 15.0]


def test_ended_environments_are_frozen(instances: list[Countdown]) -> None:
    env = countdown().make_vec({"length": [1, 3]}, 1)
    env.reset(seed=0)
    end = env.step(np.array([1, 0]))
    after = env.step(np.array([BREAK, 0]))  # which would break the first, and would be another observation
    assert (end[1].tolist(), after[1].tolist()) == ([2.0, 1.0], [0.0, 2.0])
    assert (end[2].tolist(), after[2].tolist()) == ([True, False], [True, False])
    np.testing.assert_array_equal(end[0][0], after[0][0])
    assert [one.all_steps for one in instances[-2:]] == [1, 2]


def test_partial_reset_leaves_the_others() -> None:
    env = countdown().make_vec({"length": [2, 9]}, 2)  # the others are truncated after 3 steps
    start, _ = env.reset(seed=0)
    for _ in range(3):
        before = env.step(np.zeros(4, int))[0]
    mask = np.array([True, False, False, True])
    options = {"reset_mask": mask}
    after, _ = env.reset(seed=0, options=options)
    np.testing.assert_array_equal(after[mask], start[mask])
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert options == {"reset_mask": mask}
    ends = np.stack(env.step(np.zeros(4, int))[2:4]).tolist()
    assert ends == [[False, True, False, False], [False, False, True, False]]
    assert env.step(np.zeros(4, int))[1].tolist() == [2.0, 0.0, 0.0, 2.0]
    env.reset(options={"reset_mask": torch.from_numpy(mask)})
    assert env.step(torch.zeros(4, dtype=torch.int64))[1].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_environments_are_used_again(instances: list[Countdown]) -> None:
    tasks = countdown()
    instances.clear()  # the one of the constructor
    first = tasks.make_vec({"length": [1, 2]}, 1)
    second = tasks.make_vec({"length": [3]}, 2)  # at the same time: other environments
    assert len(instances) == 4
    assert [one.length for one in instances] == [1, 2, 3, 3]
    first.reset(seed=0)
    second.reset(seed=0)
    first.close()
    del second
    third = tasks.make_vec({"length": [4]}, 5)
    assert len(instances) == 5
    assert {one.length for one in instances} == {4}
    assert not any(one.closed for one in instances)
    del third
    tasks.close()
    assert all(one.closed for one in instances)


def test_no_seed_is_left_in_an_environment_that_is_used_again() -> None:
    tasks = countdown()
    starts = []
    for _ in range(2):
        tasks.make_vec({"length": [1]}, 1).reset(seed=0)
        starts.append(tasks.make_vec({"length": [1]}, 1).reset()[0][0, 1])
    assert starts[0] != starts[1]


def test_without_set_task_they_are_closed(instances: list[Countdown]) -> None:
    tasks = GymDistribution(Countdown, LENGTH, horizon=3)
    assert [one.closed for one in instances] == [True]
    env = tasks.make_vec({"length": [1, 2]}, 1)
    assert [one.closed for one in instances] == [True, False, False]
    env.close()
    assert all(one.closed for one in instances)


def test_a_broken_environment_is_not_used_again() -> None:
    tasks = countdown()
    env = tasks.make_vec({"length": [3]}, 2)
    env.reset(seed=0)
    with pytest.raises(OSError, match="it is broken"):
        env.step(np.array([0, BREAK]))
    del env
    env = tasks.make_vec({"length": [3]}, 2)
    env.reset(seed=0)
    assert env.step(np.array([0, 0]))[1].tolist() == [1.0, 1.0]


def test_reset_is_needed_before_a_step_and_after_the_end() -> None:
    tasks = countdown()
    env, alone = tasks.make_vec({"length": [1]}, 1), tasks.make({"length": 1})
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(1, int))
    with pytest.raises(ResetNeeded, match="first reset"):
        env.reset(options={"reset_mask": np.ones(1, bool)})
    with pytest.raises(ResetNeeded, match="no episode has begun"):
        alone.step(0)
    alone.reset()
    assert alone.step(0)[2]
    with pytest.raises(ResetNeeded, match="has ended"):
        alone.step(0)
    alone.reset()
    assert alone.step(0)[2]
    env.close()
    with pytest.raises(ClosedEnvironmentError):
        env.reset()


def no_environment() -> Any:
    return "no environment"


class Odd(Countdown):
    """Whatever its observation space is, observes two numbers."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        super().__init__()
        self.observation_space = space


def needs_more(length: int) -> Any:
    raise DependencyNotInstalled("install more")


def odd(space: gymnasium.Space[Any]) -> dict[str, Any]:
    return {"env": Odd, "set_task": set_length, "env_kwargs": {"space": space}}


def refuse(env: Any, task: Any) -> None:
    raise KeyError("width")


class OldReset(gymnasium.Env):
    observation_space, action_space = Box(-1.0, 1.0, (2,)), Box(-1.0, 1.0, (1,))

    def __init__(self, length: int) -> None: ...

    def reset(self, **kwargs: Any) -> Any:
        return np.zeros(2, np.float32)


class WithoutSeed(OldReset):
    def reset(self) -> Any:
        return np.zeros(2, np.float32), {}


class NotGymnasium:
    def __init__(self, length: int) -> None: ...

    def reset(self) -> Any: ...

    def step(self, action: Any) -> Any: ...


CONSTRUCTOR: list[tuple[dict[str, Any], str]] = [
    (
        {"env": "Pendulum-v2", "space": G},
        "env must be the id of a registered.*'Pendulum-v2'; did you mean 'Pendulum-v1'",
    ),
    ({"env": "Pendulun-v1", "space": G}, "got 'Pendulun-v1'; did you mean 'Pendulum-v1'"),
    ({"env": "no_module:Pendulum-v1", "space": G}, "env must be.*No module named 'no_module'"),
    ({"env": Countdown()}, "env must be an environment's id or a function"),
    ({"env": no_environment, "set_task": set_length}, "env must return a gymnasium.Env, got 'no environment'"),
    ({"env": OldReset}, r"reset must return \(observation, info\), unlike the old Gym interface"),
    ({"env": WithoutSeed}, r"env must have reset\(\*, seed=None, options=None\).*, got TypeError.*'seed'"),
    ({"env": NotGymnasium}, "env must return a gymnasium.Env.*old Gym interface"),
    ({"env": "Pendulum-v1"}, r"env must accept the parameters.*\{'length': 4\}, got TypeError.*'length'"),
    ({"space": {"length": Discrete(3)}}, "space must be a gymnasium.spaces.Dict.*Discrete"),
    ({"space": Dict({})}, "space must be a gymnasium.spaces.Dict with at least one"),
    ({"space": Dict({"length": Text(3)})}, r"space\['length'\] must be a bounded Box"),
    ({"set_task": refuse}, r"set_task must accept the unwrapped.*\{'length': 4\}, got KeyError: 'width'"),
    ({"set_task": "length"}, "set_task must be a function.*'length'"),
    ({"env_kwargs": {"length": 3}}, r"env_kwargs must not set parameters of space, got \['length'\]"),
    ({"env_kwargs": {"render_mode": "human"}}, r"must not set \['render_mode'\]"),
    ({"space": Dict({"id": Discrete(2)})}, r"must not set \['id'\]"),
    ({"env_kwargs": ["length"]}, r"env_kwargs must be a mapping.*\['length'\]"),
    ({"horizon": None}, "horizon must be given"),
    ({"horizon": 0}, "horizon must be an integer of at least 1, got 0"),
    ({"horizon": 2.5}, "horizon must be an integer"),
    ({"workers": -1}, "workers must be an integer of at least 0, got -1"),
    ({"workers": True}, "workers must be an integer"),
    ({"timeout": 0}, "timeout must be a finite number above 0, got 0"),
    ({"timeout": "1"}, "timeout must be a finite number"),
    (odd(Tuple([Discrete(2)])), "observation space that is a Box, Discrete.*Tuple.*flatten"),
    (odd(Box(0, 255, (2,), np.uint8)), r"observations of shape \(2,\) and type uint8.*got float32 of shape \(2,\)"),
    (odd(Box(0.0, 1.0, (1,), np.float32)), r"observations of shape \(1,\).*got float32 of shape \(2,\)"),
]


@pytest.mark.parametrize(("arguments", "message"), CONSTRUCTOR)
def test_bad_constructor_arguments(arguments: dict[str, Any], message: str) -> None:
    good = {"env": Countdown, "space": LENGTH, "horizon": 3}
    with pytest.raises(ValueError, match=message):
        GymDistribution(**{**good, **arguments})


def test_the_trial_is_closed_whatever_comes_of_it(instances: list[Countdown]) -> None:
    for arguments in ({"set_task": refuse}, {"horizon": 0}):
        with pytest.raises(ValueError, match=r"set_task|horizon"):
            GymDistribution(**{"env": Countdown, "space": LENGTH, "horizon": 3, **arguments})
    assert [one.closed for one in instances] == [True, True]


def test_a_missing_dependency_is_its_own_error() -> None:
    with pytest.raises(DependencyNotInstalled, match="install more"):
        GymDistribution(needs_more, LENGTH, horizon=3)


CALLS: list[tuple[Callable[[GymDistribution], Any], str]] = [
    (lambda tasks: tasks.make({}), r"task must have the keys \['length'\]"),
    (lambda tasks: tasks.make_vec({"length": []}, 2), r"task\['length'\]"),
    (lambda tasks: tasks.make_vec({"length": [1]}, 0), "episodes must be an integer"),
    (lambda tasks: tasks.make_vec({"length": [1]}, 2, "gpu7"), "device must be a torch device"),
    (lambda tasks: begun(tasks).step(np.zeros(3, int)), r"actions must have shape \(2,\), got \(3,\)"),
    (lambda tasks: begun(tasks).step(np.zeros((2, 1), int)), r"got \(2, 1\)"),
    (lambda tasks: begun(tasks).step(np.array([0.5, 0.5])), "actions must be of type int64, got float64"),
    (lambda tasks: begun(tasks).reset(seed=-1), "seed must be an integer of at least 0, got -1"),
    (lambda tasks: begun(tasks).reset(seed=[1, 2]), "seed must be an integer"),
    (lambda tasks: begun(tasks).reset(options={"reset_masks": 1}), "did you mean 'reset_mask'"),
    (lambda tasks: begun(tasks).reset(options={"reset_mask": np.ones(3, bool)}), r"shape \(2,\), got bool of shape"),
    (lambda tasks: begun(tasks).reset(options={"reset_mask": np.ones(2)}), "must be bool.*got float64"),
]


def begun(tasks: GymDistribution) -> Any:
    env = tasks.make_vec({"length": [1]}, 2)
    env.reset(seed=0)
    return env


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_bad_calls(call: Callable[[GymDistribution], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(countdown())


def test_render_mode_is_the_environments_own() -> None:
    assert pendulum().make({"g": 9.8}, render_mode="rgb_array").render_mode == "rgb_array"
    assert pendulum().make({"g": 9.8}).render_mode is None


def test_parameters_outside_the_space_are_allowed() -> None:
    assert pendulum().make({"g": 99.0}).unwrapped.g == 99.0
    with pytest.raises(AssertionError):
        Pictures(1, np.zeros(3))  # what the tests above rely on
