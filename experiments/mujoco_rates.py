"""Environment steps a second of many MuJoCo environments: ours, physics alone, and other ways to step them.

Part of `experiments.benchmark`, as is how an iteration's seconds split into draws and the rest. Random actions; the
contenders take turns, so that the machine's moods hit all alike.

- whole: our vector environment, observations, rewards and checks included; ants that fall go on.
- physics: `mujoco.rollout` called once a control step with the states it returned, and nothing else done.
- Sync, Async: Gymnasium's vector environments over the same single environments; Async only for few, as it takes a
  process each.
- envpool: where that package is installed, with its own version of MuJoCo.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt

from envs import make_distribution
from envs.tasks import EnvTasks
from experiments.config import TrainConfig, build_source
from experiments.run import learner_arguments
from metarl import MetaLearner
from metarl.oracles import Wrapped
from metarl.types import Batch, Params, Role, Tasks, TaskSource

MOST_PROCESSES = 40
NAMES = {"half_cheetah_velocity": "HalfCheetah-v4", "ant_velocity": "Ant-v4"}  # envpool's names
OPTIONS: dict[str, dict[str, Any]] = {"ant_velocity": {"terminate_when_unhealthy": False}}  # all steps are steps

Actions = npt.NDArray[np.float32]
"""`[steps, N, action]`."""


class Size(NamedTuple):
    """How much is measured."""

    environments: tuple[int, ...] = (40, 400)
    steps: int = 8000  # of all environments together, in each round
    rounds: int = 7


def mujoco_rates(size: Size) -> list[dict[str, Any]]:
    """A row for each body and number of environments: medians, and the median ratio of whole to physics."""
    return [rates(name, number, size) for name in NAMES for number in size.environments]


def rates(name: str, number: int, size: Size) -> dict[str, Any]:
    """Environment steps a second of every contender, in turns."""
    tasks = make_distribution(name, **OPTIONS.get(name, {}))
    steps = max(2, size.steps // number)
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, number, *(tasks.action_space.shape or ())))
    runs, close = contenders(name, tasks, number)
    measured: dict[str, list[float]] = {contender: [] for contender in runs}
    for _ in range(size.rounds):
        for contender, run in runs.items():
            measured[contender].append(run(actions.astype(np.float32)) * steps * number)
    for end in close:
        end()
    ratio = statistics.median(w / p for w, p in zip(measured["whole"], measured["physics"], strict=True))
    medians = {contender: statistics.median(values) for contender, values in measured.items()}
    return {"env": name, "environments": number, **medians, "whole / physics": ratio}


def contenders(
    name: str, tasks: EnvTasks, number: int
) -> tuple[dict[str, Callable[[Actions], float]], list[Callable[[], object]]]:
    """Functions from actions to rounds a second, and what closes what they step."""
    task = tasks.sample(1, np.random.default_rng(0))
    ours = tasks.make_vec(task, number)
    one = partial(tasks.make, {key: value[0] for key, value in task.items()})
    sync = gymnasium.vector.SyncVectorEnv([one] * number)
    runs: dict[str, Callable[[Actions], float]] = {
        "whole": partial(run, ours),
        "physics": partial(physics, ours),
        "Sync": partial(run, sync),
    }
    close: list[Callable[[], object]] = [ours.close, sync.close]
    if number <= MOST_PROCESSES:
        processes = gymnasium.vector.AsyncVectorEnv([one] * number)
        runs["Async"] = partial(run, processes)
        close.append(processes.close)
    if find_spec("envpool") is not None:
        import envpool

        pool = envpool.make(NAMES[name], env_type="gymnasium", num_envs=number)
        runs["envpool"] = partial(run, pool)
        close.append(pool.close)
    return runs, close


def run(env: Any, actions: Actions) -> float:
    """Reset, then as many steps as there are actions; rounds a second, the reset not counted."""
    env.reset()
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    return 1.0 / (time.perf_counter() - start)


def physics(env: Any, actions: Actions) -> float:
    """The same steps by `mujoco.rollout` alone, from the same kind of first states."""
    import mujoco
    from mujoco.rollout import Rollout

    from envs.mujoco.physics import usable_cpus

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


class TimedDraws(Wrapped):
    """Adds up the seconds that draws take."""

    def __init__(self, tasks: Tasks, spent: list[float]) -> None:
        super().__init__(tasks)
        self.spent = spent

    def draw(self, params: Params, role: Role) -> Batch:
        start = time.perf_counter()
        batch = super().draw(params, role)
        self.spent.append(time.perf_counter() - start)
        return batch


class TimedSource:
    """A task source whose draws are timed."""

    def __init__(self, source: TaskSource) -> None:
        self.source, self.score_name, self.spent = source, source.score_name, list[float]()

    def initial_params(self) -> Params:
        return self.source.initial_params()

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TimedDraws:
        return TimedDraws(self.source.sample(num_tasks, rng), self.spent)


def meta_iteration(config: TrainConfig, repetitions: int) -> dict[str, float]:
    """Median seconds of an iteration and of the draws in it; the rest is derivatives and the outer step."""
    source = TimedSource(build_source(config))
    learner = MetaLearner(source, meta_batch_size=config.meta_batch_size, **learner_arguments(config))
    learner.learn(1)
    seconds, drawing = [], []
    for _ in range(repetitions):
        source.spent.clear()
        start = time.perf_counter()
        learner.learn(1)
        seconds.append(time.perf_counter() - start)
        drawing.append(sum(source.spent))
    return {
        "seconds": statistics.median(seconds),
        "least": min(seconds),
        "greatest": max(seconds),
        "draw_seconds": statistics.median(drawing),
        "draws": len(source.spent),
        "inner_steps": learner.method.inner.steps,
    }
