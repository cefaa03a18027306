"""What environments return, in this process: bad answers are named, good ones of other types are taken as they are."""

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from metarl.envs.gym_distribution import GymDistribution
from tests.envs.toy_envs import LENGTH, Answering, set_length

BYTES, FLOATS, CHOICE = Box(0, 255, (2,), np.uint8), Box(-1.0, 1.0, (2,), np.float32), Discrete(4)
IMAGE = Box(0, 255, (4, 4, 1), np.uint8)


def good(space: Any) -> Any:
    return 1 if space is CHOICE else np.zeros(space.shape, space.dtype)


def answer(space: Any, observation: Any = None, reward: Any = 0.0, ends: Any = (False, False), info: Any = None) -> Any:
    return (good(space) if observation is None else observation, reward, *ends, {} if info is None else info)


def tasks_for(space: Any, step: Any, reset: Any = None) -> GymDistribution:
    Answering.resets = 0
    kwargs = {"space": space, "good": (good(space), {}), "on_reset": reset, "on_step": step}
    return GymDistribution(Answering, LENGTH, horizon=9, set_task=set_length, env_kwargs=kwargs)


BAD = [
    (BYTES, answer(BYTES, np.array([300, -1])), r"inside Box\(0, 255, \(2,\), uint8\), got 300"),
    (BYTES, answer(BYTES, np.array([3.0, 1.0])), r"shape \(2,\) and type uint8.*got float64 of shape \(2,\)"),
    (IMAGE, answer(IMAGE, np.full((4, 4, 1), 0.5, np.float32)), "got float32.*multiply images in \\[0, 1\\] by 255"),
    (BYTES, answer(BYTES, np.zeros((2, 1), np.uint8)), r"got uint8 of shape \(2, 1\)"),
    (FLOATS, answer(FLOATS, 0.5), r"type float32.*got float64 of shape \(\)"),
    (FLOATS, answer(FLOATS, np.zeros(1, np.float32)), r"got float32 of shape \(1,\)"),
    (FLOATS, answer(FLOATS, np.zeros(2, complex)), "got complex128"),
    (FLOATS, answer(FLOATS, "ab"), "got <U2"),
    (FLOATS, answer(FLOATS, [[1.0], [1.0, 2.0]]), r"got \[\[1.0\], \[1.0, 2.0\]\]"),
    (FLOATS, answer(FLOATS, {"x": 1}), "got {'x': 1}"),
    (CHOICE, answer(CHOICE, 4), r"inside Discrete\(4\), got 4"),
    (CHOICE, answer(CHOICE, -1), r"inside Discrete\(4\), got -1"),
    (CHOICE, answer(CHOICE, np.int64(7)), "got 7"),
    (CHOICE, answer(CHOICE, 1.0), r"type int64.*got float64"),
    (FLOATS, answer(FLOATS, reward=np.zeros(1)), r"the reward must be one number, got array\(\[0.\]\)"),
    (FLOATS, answer(FLOATS, reward=[1.0]), r"the reward must be one number, got \[1.0\]"),
    (FLOATS, answer(FLOATS, reward="1"), "the reward must be one number, got '1'"),
    (FLOATS, answer(FLOATS, reward=1j), "the reward must be one number, got 1j"),
    (FLOATS, answer(FLOATS, ends=(None, False)), "terminated must be True or False, got None"),
    (FLOATS, answer(FLOATS, ends=(False, "no")), "truncated must be True or False, got 'no'"),
    (FLOATS, answer(FLOATS, ends=(2, False)), "terminated must be True or False, got 2"),
    (FLOATS, answer(FLOATS, ends=(False, np.zeros(1, bool))), r"truncated must be True or False, got array\(\[False\]"),
    (FLOATS, answer(FLOATS, ends=(0.0, False)), "terminated must be True or False, got 0.0"),
    (FLOATS, answer(FLOATS, info=[]), r"the info of step must be a dict, got \[\]"),
    (FLOATS, (good(FLOATS), 0.0, False, {}), "step must return.*got 4 values"),
    (FLOATS, [good(FLOATS), 0.0, False, False, {}], "step must return.*got a list"),
    (FLOATS, None, "step must return.*got a NoneType"),
]


@pytest.mark.parametrize(("space", "step", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
@pytest.mark.parametrize("together", [True, False])
def test_bad_answers_of_a_step(space: Any, step: Any, message: str, together: bool) -> None:
    tasks = tasks_for(space, step)
    where = r"^Answering of task \{'length': 2\}, step 3: "
    env: Any = tasks.make_vec({"length": [2]}, 1) if together else tasks.make({"length": 2})
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(1, int) if together else 0)
    with pytest.raises(ValueError, match=where + ".*" + message):
        env.step(np.zeros(1, int) if together else 0)


RESETS = [
    (np.zeros(2, np.float32), r"reset must return \(observation, info\), unlike the old Gym interface, got a ndarray"),
    ((np.zeros(2, np.float32), {}, {}), "got 3 values"),
    ((np.zeros(2, np.float32), None), "the info of reset must be a dict, got None"),
    ((np.zeros(3, np.float32), {}), r"observations of shape \(2,\).*got float32 of shape \(3,\)"),
    ((None, {}), "observations of shape.*got None"),
]


@pytest.mark.parametrize(("reset", "message"), RESETS)
def test_bad_answers_of_a_reset(reset: Any, message: str) -> None:
    tasks = tasks_for(FLOATS, answer(FLOATS), reset)  # good the first time, when the tasks are made
    with pytest.raises(ValueError, match=r"^Answering of task \{'length': 1\}, step 0: .*" + message):
        tasks.make_vec({"length": [1]}, 1).reset(seed=0)
    kwargs = {"space": FLOATS, "good": reset, "on_step": None, "on_reset": None}
    with pytest.raises(ValueError, match=r"^Answering, step 0: .*" + message):
        GymDistribution(Answering, LENGTH, horizon=3, set_task=set_length, env_kwargs=kwargs)


TAKEN = [
    (BYTES, np.array([7, 255]), [7, 255]),
    (BYTES, [7, 9], [7, 9]),
    (BYTES, np.array([True, False]), [1, 0]),
    (FLOATS, np.array([0.1, -0.1]), np.float32([0.1, -0.1])),
    (FLOATS, [1, 0], [1, 0]),
    (FLOATS, np.array([1, 0], np.int8), [1, 0]),
    (CHOICE, np.int8(3), 3),
    (CHOICE, np.array(3), 3),
]


@pytest.mark.parametrize(("space", "observation", "wanted"), TAKEN)
@pytest.mark.parametrize(
    ("reward", "ends"),
    [(np.float32(2), (np.bool_(True), 0)), (2, (1, np.False_)), (np.array(2), (np.array(True), False))],
)
def test_what_loses_nothing_is_taken(space: Any, observation: Any, wanted: Any, reward: Any, ends: Any) -> None:
    vec = tasks_for(space, answer(space, observation, reward, ends)).make_vec({"length": [1]}, 1)
    vec.reset(seed=0)
    for _ in range(3):
        got = vec.step(np.zeros(1, int))
    assert got[0].dtype == space.dtype
    np.testing.assert_array_equal(got[0][0], wanted)
    assert [x.tolist() for x in got[1:4]] == [[2.0], [True], [False]]


def test_floats_outside_their_bounds_are_said_once() -> None:
    """At the first step; they are used as they are."""
    step = answer(FLOATS, np.float32([3.0, 0.0]))
    kwargs = {"space": FLOATS, "good": (good(FLOATS), {}), "on_step": step, "on_reset": None, "from_step": 1}
    tasks = GymDistribution(Answering, LENGTH, horizon=9, set_task=set_length, env_kwargs=kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        vec = tasks.make_vec({"length": [1, 2]}, 2)
        vec.reset(seed=0)
        for _ in range(3):
            got = vec.step(np.zeros(4, int))
    assert [re.sub(r"Box.*\)", "BOX", str(one.message)) for one in caught] == [
        "Answering: observations should lie inside BOX, but some do not; they are used as they are"
    ]
    assert got[0].tolist() == [[3.0, 0.0]] * 4


def test_an_environment_after_a_bad_answer_is_closed() -> None:
    tasks = tasks_for(FLOATS, answer(FLOATS, reward=None))
    Answering.open = 0
    vec = tasks.make_vec({"length": [1]}, 3)
    vec.reset(seed=0)
    assert Answering.open == 3
    for _ in range(2):
        vec.step(np.zeros(3, int))
    with pytest.raises(ValueError, match="reward"):
        vec.step(np.zeros(3, int))
    assert Answering.open == 0


def test_torch_numbers_are_numbers() -> None:
    vec = tasks_for(FLOATS, answer(FLOATS, torch.tensor([0.5, 0.0]), torch.tensor(1.5))).make_vec({"length": [1]}, 1)
    vec.reset(seed=0)
    rewards = [vec.step(np.zeros(1, int))[1].tolist() for _ in range(3)]
    assert rewards == [[0.0], [0.0], [1.5]]
