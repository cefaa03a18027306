"""Worker processes: the results of one process, and what happens when they or their parent come to harm.

Starting a worker takes seconds, since importing `envs` imports torch; the tests share what they can.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from metarl import MetaLearner
from metarl.agents import make_policy
from metarl.envs.cart_pole import CartPole
from metarl.envs.gym_distribution import GymDistribution
from metarl.envs.workers import WorkerError
from metarl.rl import ReinforcementLearning
from tests.envs.toy_envs import (
    BREAK,
    EXIT,
    HANG,
    LENGTH,
    RAISE,
    WORK,
    Countdown,
    Logged,
    pictures,
    random_actions,
    set_length,
    trouble,
)

# Known to this process alone: the toy module, which the workers import, does not register it.
gymnasium.register("metarl-toys/Pictures-v0", entry_point="tests.envs.toy_envs:Pictures")

PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


def pids(tasks: GymDistribution) -> list[int]:
    assert tasks._pool is not None
    return [worker.process.pid for worker in tasks._pool._workers]


def running(pid: int) -> bool:
    """Whether it is a process, and no zombie that nobody has asked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(found: list[int], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while any(map(running, found)):
        assert time.monotonic() < end, f"still there: {[pid for pid in found if running(pid)]}"
        time.sleep(0.02)


def start_hanging_script(workers: int) -> subprocess.Popen[str]:
    command, root = [sys.executable, "-m", "tests.envs.hanging", str(workers)], Path(__file__).parents[2]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=root, text=True, start_new_session=True, **pipes)


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Started first, as they take their time."""
    with contextlib.ExitStack() as stack:
        numbers = {"interrupt": 1, "kill": 2}
        started = {name: stack.enter_context(start_hanging_script(number)) for name, number in numbers.items()}
        try:
            yield started
        finally:
            for script in started.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(script.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cart_poles() -> Iterator[CartPole]:
    with CartPole(horizon=20, workers=2) as tasks:
        tasks.make_vec(tasks.sample(1, np.random.default_rng(0)), 1)
        found = pids(tasks)
        yield tasks
    assert not any(map(running, found))  # when close() returns they are gone


def test_the_same_as_in_process(cart_poles: CartPole) -> None:
    here, task = CartPole(horizon=20), cart_poles.sample(5, np.random.default_rng(0))
    vecs = [tasks.make_vec(task, 3) for tasks in (here, cart_poles)]
    other = cart_poles.make_vec(task, 2)  # at the same time, in the same workers
    other.reset(seed=9)
    actions = random_actions(here, 40, 15)
    mask = np.arange(15) % 4 == 1
    resets: dict[int, dict[str, Any]] = {
        0: {"seed": 0},
        15: {"options": {"reset_mask": mask}},
        18: {"seed": 3, "options": {"reset_mask": ~mask}},
    }
    ended = np.zeros(2)
    for step, action in enumerate(actions):
        if step in resets:
            start, expected = (vec.reset(**resets[step])[0] for vec in reversed(vecs))
            np.testing.assert_array_equal(start, expected)
        expected, got = (vec.step(action) for vec in vecs)
        other.step(action[:10])
        for a, b in zip(got[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        assert got[4] == {}
        got[0].fill(np.nan)  # the caller's
        ended += got[2].sum(), got[3].sum()
    assert (ended > 0).all()


def test_unseeded_environments_differ(cart_poles: CartPole) -> None:
    task = cart_poles.sample(2, np.random.default_rng(0))
    starts = np.concatenate([cart_poles.make_vec(task, 2).reset()[0] for _ in range(2)])
    assert len(np.unique(starts, axis=0)) == 8


def test_fewer_environments_than_workers(cart_poles: CartPole) -> None:
    task = cart_poles.sample(1, np.random.default_rng(0))
    start, _ = cart_poles.make_vec(task, 1).reset(seed=4)
    np.testing.assert_array_equal(start, CartPole().make_vec(task, 1).reset(seed=4)[0])


def test_bad_calls_do_no_harm(cart_poles: CartPole) -> None:
    before, env = pids(cart_poles), cart_poles.make_vec(cart_poles.sample(2, np.random.default_rng(0)), 1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(2,\)"):
        env.step(np.zeros(3, int))
    with pytest.raises(ValueError, match="reset_mask must be bool"):
        env.reset(options={"reset_mask": np.ones(3, bool)})
    assert env.step(np.zeros(2, int))[1].tolist() == [1.0, 1.0]
    assert pids(cart_poles) == before


def test_training_is_the_same(cart_poles: CartPole) -> None:
    parameters = []
    for tasks in (CartPole(horizon=20), cart_poles):
        torch.manual_seed(0)
        policy = make_policy(tasks.observation_space, tasks.action_space)
        learner = MetaLearner(ReinforcementLearning(tasks, policy, episodes=2), meta_batch_size=3, seed=0)
        before = learner.params
        learner.learn(1)
        parameters.append(learner.params)
    assert all(torch.equal(parameters[0][name], value) for name, value in parameters[1].items())
    assert any(not torch.equal(before[name], value) for name, value in parameters[1].items())


def test_pictures_of_an_environment_that_only_the_parent_has_registered() -> None:
    here = pictures()
    task = here.sample(3, np.random.default_rng(0))
    there = GymDistribution("metarl-toys/Pictures-v0", here.space, horizon=30, workers=1)
    vecs = [tasks.make_vec(task, 2) for tasks in (here, there)]
    a, b = (vec.reset(seed=5)[0] for vec in vecs)
    np.testing.assert_array_equal(a, b)
    for action in random_actions(here, 6, 6):
        expected, got = (vec.step(action) for vec in vecs)
        for a, b in zip(got[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    found = pids(there)
    del there, vecs  # nobody holds them
    assert not any(map(running, found))
    assert not any(child.pid in found for child in multiprocessing.active_children())


def step(env: Any, *actions: int) -> None:
    env.step(np.array(actions))


def test_workers_are_used_again_their_failures_are_reported_and_others_take_their_place() -> None:
    """With the default timeout of a minute: nothing here waits for it."""
    with trouble(workers=1) as tasks:
        env = tasks.make_vec({"length": [1, 2]}, 2)
        seen = env.reset()[0]
        assert (seen.tolist(), seen.dtype) == ([4] * 4, np.int64)  # environments made so far, where they are
        before = pids(tasks)
        second = tasks.make_vec({"length": [1]}, 1)
        assert second.reset()[0].tolist() == [5]
        env.close()
        del second
        assert tasks.make_vec({"length": [1]}, 6).reset()[0].tolist() == [6] * 6
        assert pids(tasks) == before

        env, other = (tasks.make_vec({"length": [1]}, 3) for _ in range(2))
        env.reset()
        other.reset()
        message = r"(?s)worker 0 \(environments 0 to 2\) failed:.*a fault of the environment"
        with pytest.raises(WorkerError, match=message) as raised:
            step(env, WORK, RAISE, WORK)
        assert "toy_envs.py" in str(raised.value)
        with pytest.raises(WorkerError, match="workers of this vector environment have been closed"):
            step(other, WORK, WORK, WORK)
        assert not any(map(running, before))

        env = tasks.make_vec({"length": [1]}, 2)
        env.reset()
        start = time.monotonic()
        with pytest.raises(WorkerError, match=r"worker 0 \(environments 0 to 1\) died with exit code 3$"):
            step(env, EXIT, WORK)
        assert time.monotonic() - start < 20.0

        env = tasks.make_vec({"length": [1]}, 2)
        env.reset()
        os.kill(pids(tasks)[0], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"died with exit code -9 \(SIGKILL\)"):
            step(env, WORK, WORK)


def test_bad_answers_are_named_and_all_environments_are_closed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tasks = GymDistribution(Logged, LENGTH, horizon=9, workers=2, env_kwargs={"log": str(log)})
    env = tasks.make_vec({"length": [3, 4]}, 3)
    other = tasks.make_vec({"length": [2]}, 2)
    env.reset(seed=0)
    other.reset(seed=0)
    message = (
        r"(?s)worker 1 \(environments 3 to 5\) failed:.*Logged of task {'length': 4}, step 1: the reward must be one"
    )
    with pytest.raises(WorkerError, match=message):
        step(env, WORK, WORK, WORK, WORK, BREAK, WORK)
    lines = [line.split(maxsplit=1) for line in log.read_text().splitlines()]
    opened, closed = (sorted(name for what, name in lines if what == one) for one in ("open", "close"))
    assert len(opened) == 1 + 6 + 2  # the first one tried out here
    assert opened == closed


def test_a_worker_that_does_not_answer_is_killed() -> None:
    tasks = trouble(workers=1, timeout=0.5)  # starting takes longer, and may
    env = tasks.make_vec({"length": [1]}, 1)
    env.reset()
    found = pids(tasks)
    message = r"worker 0 \(environments 0 to 0\) did not answer within 0.5 seconds and was killed"
    with pytest.raises(WorkerError, match=message):
        step(env, HANG)
    assert not any(map(running, found))
    with pytest.raises(WorkerError, match="closed"):
        env.reset()


def test_what_cannot_be_sent_is_refused_before_anything_starts() -> None:
    children = multiprocessing.active_children()
    good: dict[str, Any] = {"env": Countdown, "space": LENGTH, "set_task": set_length, "horizon": 3, "workers": 1}
    for name, value in {
        "env": lambda: Countdown(),
        "set_task": lambda env, task: None,
        "env_kwargs": {"length": (i for i in "a generator")},
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be picklable for workers.*top level of a module"):
            GymDistribution(**{**good, name: value})
        assert GymDistribution(**{**good, name: value, "workers": 0}).horizon == 3
    assert multiprocessing.active_children() == children


def test_pickling_a_distribution_leaves_its_workers_behind(cart_poles: CartPole) -> None:
    cart_poles.make_vec(cart_poles.sample(1, np.random.default_rng(0)), 1)
    state = cart_poles.__getstate__()
    assert (state["workers"], state["_pool"]) == (2, None)


def wait_until_hanging(script: subprocess.Popen[str]) -> list[int]:
    assert script.stdout is not None
    assert script.stderr is not None
    found = [int(word) for word in script.stdout.readline().split()]
    assert found, script.stderr.read()
    assert script.stdout.readline() == "hanging\n"
    assert all(map(running, found))
    return found


@PROC
def test_interrupted_by_ctrl_c(scripts: dict[str, subprocess.Popen[str]]) -> None:
    script = scripts["interrupt"]
    found = wait_until_hanging(script)
    os.kill(found[0], signal.SIGINT)
    time.sleep(0.3)  # a worker that minded would say so
    os.killpg(script.pid, signal.SIGINT)  # as the terminal does: parent and workers
    _, errors = script.communicate(timeout=20)
    assert errors.count("Traceback") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")
    wait_until_gone(found, 0.0)  # the parent has seen to it


@PROC
def test_killed_parents_leave_nobody_behind(scripts: dict[str, subprocess.Popen[str]]) -> None:
    script = scripts["kill"]
    found = wait_until_hanging(script)  # one of them waits for a question, the other is busy
    os.kill(script.pid, signal.SIGKILL)
    wait_until_gone(found)
    _, errors = script.communicate(timeout=20)
    assert errors == ""
