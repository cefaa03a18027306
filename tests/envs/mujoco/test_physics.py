"""Stepping many simulations: why not `mujoco.rollout`, what is refused, what is left behind."""

import os
import pickle
import threading
import warnings
import weakref

import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from mujoco.rollout import Rollout

from metarl.envs.mujoco import HalfCheetahVelocity
from metarl.envs.mujoco.physics import Physics, state_block, usable_cpus

N = 6


def nothing(model: mujoco.MjModel, data: mujoco.MjData, i: int) -> None:
    pass


def cheetahs() -> tuple[HalfCheetahEnv, Physics]:
    env = HalfCheetahEnv()
    return env, Physics([env.model] * N, env.frame_skip)


def test_mujoco_s_rollout_differs_where_it_forgets_the_warm_start() -> None:
    """In a closed loop the 13th digit goes."""
    env, physics = cheetahs()
    model, rng = env.model, np.random.default_rng(0)
    physics.reset(range(N), env.init_qpos + rng.uniform(-0.1, 0.1, (N, model.nq)), np.zeros((N, model.nv)), nothing)
    state = np.concatenate([np.zeros((N, 1)), physics.qpos, physics.qvel], axis=1)
    equal = []
    with Rollout(nthread=2) as rollout:
        for _ in range(20):
            physics.ctrl[:] = rng.uniform(-1, 1, (N, model.nu))
            control = np.repeat(physics.ctrl[:, None], env.frame_skip, axis=1)
            datas = [mujoco.MjData(model) for _ in range(2)]
            state = rollout.rollout([model] * N, datas, state, control)[0][:, -1]
            physics.step(range(N), nothing)
            equal.append(np.array_equal(state[:, 1 : 1 + model.nq], physics.qpos))
            np.testing.assert_allclose(state[:, 1 : 1 + model.nq], physics.qpos, atol=1e-6)
    assert not equal[-1]


def test_only_the_environments_asked_for_move() -> None:
    env, physics = cheetahs()
    physics.reset(range(N), np.tile(env.init_qpos, (N, 1)), np.zeros((N, env.model.nv)), nothing)
    before = physics.state.copy()
    physics.ctrl[:] = 0.5
    before_ctrl = physics.ctrl.copy()
    physics.step([1, 4], nothing)
    moved = (physics.qpos != before[:, : env.model.nq]).any(1)
    np.testing.assert_array_equal(moved, [False, True, False, False, True, False])
    np.testing.assert_array_equal(physics.ctrl, before_ctrl)
    physics.reset([4], env.init_qpos[None], np.zeros((1, env.model.nv)), nothing)
    np.testing.assert_array_equal(physics.state[4], before[4])


def test_a_layout_of_the_state_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env, _ = cheetahs()
    monkeypatch.setattr(mujoco, "mj_getState", lambda model, data, state, spec: state.fill(0.0))
    with pytest.raises(RuntimeError, match=f"MuJoCo {mujoco.__version__} lays out its state"):
        state_block(env.model, env.data)
    monkeypatch.undo()
    monkeypatch.setattr(mujoco, "mj_stateSize", lambda model, spec: -100)
    with pytest.raises(RuntimeError, match="lays out its state"):
        state_block(env.model, env.data)


def test_a_forked_process_has_threads_of_its_own() -> None:
    env, physics = cheetahs()
    start = np.tile(env.init_qpos, (N, 1)), np.zeros((N, env.model.nv))
    physics.reset(range(N), *start, nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forking with threads
        child = os.fork()
    if child == 0:
        fresh = cheetahs()[1]
        fresh.reset(range(N), *start, nothing)
        os._exit(0 if np.array_equal(fresh.state, physics.state) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_is_left_of_environments_no_longer_used() -> None:
    tasks = HalfCheetahVelocity(threads=2)
    env = tasks.make_vec(tasks.sample(3, np.random.default_rng(0)), 2)
    env.reset(seed=0)
    threads, gone = threading.active_count(), weakref.ref(env.physics)
    del env
    assert gone() is None  # at once: no cycle keeps it until the collector runs
    tasks.make_vec(tasks.sample(3, np.random.default_rng(0)), 2).reset(seed=0)
    assert threading.active_count() == threads


def test_a_distribution_travels() -> None:
    tasks = pickle.loads(pickle.dumps(HalfCheetahVelocity(horizon=7, goal_high=3.0)))
    assert (tasks.horizon, tasks.goal_high) == (7, 3.0)
    assert tasks.make_vec(tasks.sample(2, np.random.default_rng(0)), 1).reset(seed=0)[0].shape == (2, 17)


def test_cpus() -> None:
    assert usable_cpus() >= 1
