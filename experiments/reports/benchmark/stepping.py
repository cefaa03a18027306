"""Environment steps a second of many MuJoCo environments: ours, physics alone, and other ways to step them.

Random actions; the contenders take turns, so that a change of the machine's speed affects all of them.

- whole: our vector environment, with observations, rewards and checks; ants continue after a fall.
- physics: `mujoco.rollout` called once a control step with the states it returned, and nothing else.
- Sync, Async: Gymnasium's vector environments over the same single environments; Async only for few, because it
  starts a process for each.
- envpool: if that package is installed, with its own version of MuJoCo.
- mjbatch: if that package is installed, the physics alone by its threads. It needs one version of MuJoCo.
"""

import statistics
import time
from contextlib import ExitStack, closing
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt

from metarl.envs import make_distribution
from metarl.envs.base import EnvDistribution

MOST_PROCESSES = 40
NAMES = {"half_cheetah_velocity": "HalfCheetah-v4", "ant_velocity": "Ant-v4"}  # envpool's names
OPTIONS: dict[str, dict[str, Any]] = {"ant_velocity": {"terminate_when_unhealthy": False}}  # no episode ends

Actions = npt.NDArray[np.float32]
"""`[steps, N, action]`."""


class SteppingSize(NamedTuple):
    """The number of environments, steps and rounds."""

    environments: tuple[int, ...] = (40, 400)
    steps: int = 8000  # of all environments together, in a round
    rounds: int = 7


def measure_stepping(name: str, number: int, size: SteppingSize) -> dict[str, Any]:
    """Environment steps a second of every contender, in turns."""
    tasks = make_distribution(name, **OPTIONS.get(name, {}))
    actions = random_actions(tasks, number, size.steps)
    with ExitStack() as stack:
        envs = {
            contender: stack.enter_context(closing(env)) for contender, env in make_envs(name, tasks, number).items()
        }
        runs = {contender: partial(step_all, env) for contender, env in envs.items()}
        runs["physics"] = partial(step_physics, envs["whole"])
        if find_spec("mjbatch") is not None:
            runs["mjbatch"] = partial(step_mjbatch, envs["whole"])
        measured: dict[str, list[float]] = {contender: [] for contender in runs}
        for _ in range(size.rounds):
            for contender, run in runs.items():
                measured[contender].append(run(actions) * len(actions) * number)
    ratio = statistics.median(w / p for w, p in zip(measured["whole"], measured["physics"], strict=True))
    medians = {contender: statistics.median(values) for contender, values in measured.items()}
    return {"env": name, "environments": number, **medians, "whole / physics": ratio}


def make_envs(name: str, tasks: EnvDistribution, number: int) -> dict[str, Any]:
    """The vector environments of all contenders but physics, which uses ours."""
    task = tasks.sample(1, np.random.default_rng(0))
    one = partial(tasks.make, {key: value[0] for key, value in task.items()})
    envs: dict[str, Any] = {
        "whole": tasks.make_vec(task, number),
        "Sync": gymnasium.vector.SyncVectorEnv([one] * number),
    }
    if number <= MOST_PROCESSES:
        envs["Async"] = gymnasium.vector.AsyncVectorEnv([one] * number)
    if find_spec("envpool") is not None:
        import envpool

        envs["envpool"] = envpool.make(NAMES[name], env_type="gymnasium", num_envs=number)
    return envs


def step_all(env: Any, actions: Actions) -> float:
    """Reset, then take all steps; rounds a second, without the reset."""
    env.reset()
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return 1.0 / (time.perf_counter() - start)


def step_physics(env: Any, actions: Actions) -> float:
    """The same steps by `mujoco.rollout` alone, from first states of the same distribution."""
    import mujoco
    from mujoco.rollout import Rollout

    from metarl.envs.mujoco.physics import usable_cpus

    env.reset()
    model, frame_skip, n = env.physics.model, env.physics.frame_skip, env.num_envs
    states = np.concatenate([np.zeros((n, 1)), env.physics.qpos, env.physics.qvel], axis=1)  # time first
    out = np.empty((n, frame_skip, states.shape[1]))
    control = np.empty((n, frame_skip, model.nu))
    datas = [mujoco.MjData(model) for _ in range(usable_cpus())]
    with Rollout(nthread=len(datas)) as rollout:
        start = time.perf_counter()
        for action in actions:
            control[:] = action[:, None]
            rollout.rollout([model] * n, datas, states, control, nstep=frame_skip, state=out, skip_checks=True)
            states = np.ascontiguousarray(out[:, -1])
        return 1.0 / (time.perf_counter() - start)


def step_mjbatch(env: Any, actions: Actions) -> float:
    """The same steps by `mjbatch` alone."""
    from mjbatch import Batch

    env.reset()
    batch = Batch(env.physics.model, env.num_envs)
    qpos, qvel, control = (batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
    batch.reset()
    qpos[:], qvel[:] = env.physics.qpos, env.physics.qvel
    start = time.perf_counter()
    for action in actions:
        control[:] = action
        batch.step(nstep=env.physics.frame_skip)
    return 1.0 / (time.perf_counter() - start)


def physics_rate(name: str, number: int) -> float:
    """Environment steps a second of `number` environments by physics alone: 16,000 steps, at most 400 of each."""
    tasks = make_distribution(name, **OPTIONS.get(name, {}))
    env = tasks.make_vec(tasks.sample(1, np.random.default_rng(0)), number)
    actions = random_actions(tasks, number, min(16_000, 400 * number))
    try:
        return number * len(actions) * step_physics(env, actions)
    finally:
        env.close()


def random_actions(tasks: EnvDistribution, number: int, steps: int) -> Actions:
    """Uniform actions for `number` environments, `steps` of them together."""
    shape = (max(2, steps // number), number, *(tasks.action_space.shape or ()))
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
