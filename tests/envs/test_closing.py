"""Every environment that was opened is closed, once, whatever fails."""

import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import SyncVectorEnv

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs.gym_distribution import GymDistribution
from metarl.envs.vector import AUTORESET
from metarl.rl import ReinforcementLearning
from metarl.types import TaskDistribution
from tests.envs.toy_envs import LENGTH, Counted, set_length

pytestmark = pytest.mark.usefixtures("unrecorded")


@pytest.fixture(autouse=True)
def counted() -> Iterator[type[Counted]]:
    Counted.start()
    yield Counted
    gc.collect()
    Counted.start()


def failing_set_task(env: Counted, task: dict[str, Any]) -> None:
    Counted.count("set_task")
    set_length(env, task)  # type: ignore[arg-type]


def learner(tasks: TaskDistribution) -> MetaLearner:
    policy = make_policy(tasks.observation_space, tasks.action_space, policy_kwargs={"net_arch": [4]})
    return MetaLearner(ReinforcementLearning(tasks, policy, episodes=3), "maml", meta_batch_size=3, inner_lr=0.1)


def assert_closed_once() -> None:
    assert Counted.opened > 0
    assert Counted.closed == Counter(dict.fromkeys(range(Counted.opened), 1))


@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize(
    ("what", "number"),
    [
        *(("init", number) for number in (1, 2, 5, 10)),
        *(("set_task", number) for number in (1, 14)),
        *(("reset", number) for number in (4, 12)),
        *(("step", number) for number in (1, 30, 200)),
        ("nothing", 1),
    ],
)
def test_all_are_closed_when_something_fails(what: str, number: int, reused: bool) -> None:
    """The error is kept, and with it all the frames of its traceback; `close` reaches what they hold."""
    if what == "set_task" and not reused:
        return
    arguments = {"set_task": failing_set_task} if reused else {}
    tasks = None
    Counted.fail(what, number)
    try:
        tasks = GymDistribution(Counted, LENGTH, horizon=5, **arguments)
        learner(tasks).learn(3)
        assert what == "nothing"
    except (OSError, ValueError) as error:
        kept = error
        assert "the fault of" in str(kept)
    if tasks is not None:
        tasks.close()
        tasks.close()
    assert (Counted.opened > 0) or (what, number) == ("init", 1)
    assert Counted.closed == Counter(dict.fromkeys(range(Counted.opened), 1))


@pytest.mark.parametrize("reused", [True, False])
def test_without_close_they_are_closed_when_nobody_holds_them(reused: bool) -> None:
    arguments = {"set_task": failing_set_task} if reused else {}
    tasks = GymDistribution(Counted, LENGTH, horizon=5, **arguments)
    learner(tasks).learn(1)
    vec = tasks.make_vec({"length": [1]}, 2)
    del tasks, vec
    gc.collect()
    assert_closed_once()


def test_an_error_on_closing_does_not_keep_the_others_open() -> None:
    tasks = GymDistribution(Counted, LENGTH, horizon=5, set_task=failing_set_task)
    vec = tasks.make_vec({"length": [1]}, 4)
    vec.reset(seed=0)
    Counted.fail("close", 2)
    with pytest.raises(OSError, match="the fault of close"):
        tasks.close()
    tasks.close()
    vec.close()
    assert_closed_once()


def test_an_error_on_closing_does_not_hide_the_first_one() -> None:
    tasks = GymDistribution(Counted, LENGTH, horizon=5)
    vec = tasks.make_vec({"length": [1]}, 4)
    vec.reset(seed=0)
    Counted.fail("step", 3)
    Counted.fail("close", 2)
    with pytest.raises(OSError, match="the fault of step"):
        vec.step(np.zeros(4, int))
    vec.close()
    assert_closed_once()


def test_what_was_closed_cannot_be_stepped_and_others_take_its_place() -> None:
    tasks = GymDistribution(Counted, LENGTH, horizon=5, set_task=failing_set_task)
    vec = tasks.make_vec({"length": [1]}, 2)
    vec.reset(seed=0)
    tasks.close()
    for act in (lambda: vec.step(np.zeros(2, int)), lambda: vec.reset(seed=0)):
        with pytest.raises(ClosedEnvironmentError, match="make new ones"):
            act()
    again = tasks.make_vec({"length": [3]}, 2)
    again.reset(seed=0)
    assert again.step(np.zeros(2, int))[1].tolist() == [1.0, 1.0]
    tasks.close()
    assert_closed_once()


class OwnTasks:
    """A distribution that makes Gymnasium's own vector environments."""

    space = LENGTH
    observation_space, action_space, horizon = Counted().observation_space, Counted().action_space, 5
    vecs: ClassVar[list[Any]] = []

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Any:
        return {"length": np.full(num_tasks, 9)}  # all end at the horizon

    def make(self, task: Any) -> Any:
        return gymnasium.wrappers.TimeLimit(Counted(int(task["length"])), 5)

    def make_vec(self, task: Any, episodes: int, device: Any = "cpu") -> Any:
        rows = [{"length": one} for one in task["length"] for _ in range(episodes)]
        return SyncVectorEnv([lambda row=row: self.make(row) for row in rows], **AUTORESET)


@pytest.mark.parametrize("number", [17, 10_000])
def test_vector_environments_of_users_are_closed(number: int) -> None:
    Counted.fail("step", number)
    one = learner(OwnTasks())
    try:
        one.learn(2)
    except OSError:
        assert number == 17
    del one
    gc.collect()
    assert Counted.opened == (9 if number == 17 else 18)
    assert_closed_once()
