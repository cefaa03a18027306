"""PPO of Stable-Baselines3 from meta-trained parameters against PPO from scratch, on held-out tasks.

    python -m metarl.experiments.bridge.fine_tune policies/navigation --target -10 --goals 20

It counts environment steps, adaptation included, until the mean return of the episodes that end in one rollout of PPO
reaches the target. A rollout has the run's episodes, side by side, for one horizon. All three starts use the same
settings of PPO: Adam with its usual settings, or one gradient step for each rollout, as in meta-training (`sgd`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback

import metarl
from metarl import MetaLearner
from metarl.agents import TaskVecEnv, to_sb3
from metarl.errors import check_int, check_real
from metarl.experiments.common import cli
from metarl.experiments.common.tables import markdown_table, with_interval
from metarl.random import Stream, stream_generator
from metarl.rl import ReinforcementLearning
from metarl.statistics import confidence_interval
from metarl.types import Params


@dataclass(frozen=True)
class Arguments:
    """Settings of the comparison."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, or a package."""
    target: float = -10.0
    """Return to reach."""
    goals: int = 20
    """Held-out tasks."""
    limit: int = 200_000
    """Environment steps after which an algorithm stops; a task that misses the target counts with this number."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of PPO: adam (10 epochs of 4 minibatches for each rollout), or sgd (one step for each rollout)."""
    learning_rate: float | None = None
    """Learning rate of PPO. Default: 1e-3 for adam, the inner step size of training for sgd."""
    seed: int = 1000
    """Seed of the tasks and of PPO."""


class Start(NamedTuple):
    """Where PPO starts on one task, and the environment steps that adaptation took."""

    params: Params
    env_steps: int = 0


class UntilReturn(BaseCallback):
    """Ends training after the first rollout whose episodes have a mean return of at least `target`."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target
        self.reached: int | None = None  # environment steps
        self._returns: list[float] = []

    def _on_step(self) -> bool:
        self._returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return self.reached is None

    def _on_rollout_end(self) -> None:
        if self._returns and float(np.mean(self._returns)) >= self.target:
            self.reached = self.num_timesteps
        self._returns.clear()


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "python -m metarl.experiments.bridge.fine_tune", __doc__)
    learner, rate = cli.prepare(lambda: prepare(given))
    torch.set_num_threads(1)

    # held-out tasks, and the three starts
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    tasks = source.distribution.sample(given.goals, stream_generator(given.seed, Stream.HELD_OUT_TASKS))
    starts: dict[str, Callable[[Any, int], Start]] = {
        "from scratch": lambda task, seed: Start(source.initial_params()),
        "meta-trained": lambda task, seed: Start(learner.params),
        "adapted by one gradient step": lambda task, seed: adapt(learner, task, seed),
    }

    # PPO from every start on every task
    steps: dict[str, list[float]] = {name: [] for name in starts}
    for i in range(given.goals):
        task = {name: values[i] for name, values in tasks.items()}
        for name, start in starts.items():
            steps[name].append(count_steps(given, source, task, start(task, i), rate, given.seed + i))
        print(f"task {i + 1} of {given.goals}: {', '.join(f'{n} {s[-1]:.0f}' for n, s in steps.items())}", flush=True)
    print(table(steps, given))


def prepare(given: Arguments) -> tuple[MetaLearner, float]:
    """The learner and PPO's learning rate, with everything checked.

    Raises:
        ValueError: naming what cannot work.
    """
    for name in ("goals", "limit"):
        check_int(name, getattr(given, name))
    check_int("seed", given.seed, minimum=0)
    check_real("target", given.target, -np.inf)
    learner = metarl.load(given.run)
    if not isinstance(learner.source, ReinforcementLearning):
        raise ValueError(f"run must be one of metarl train, got {given.run}, a supervised one")
    rollout = learner.source.episodes * learner.source.distribution.horizon
    if given.limit < rollout:
        raise ValueError(f"limit must be enough for a rollout, at least {rollout}, got {given.limit}")
    return learner, choose_rate(given, learner)


def adapt(learner: MetaLearner, task: Any, seed: int) -> Start:
    """The start after one gradient step of the meta-trained policy."""
    adapted = learner.adapt(task, 1, seed=seed)
    return Start(adapted.params, adapted.env_steps)


def count_steps(
    given: Arguments, source: ReinforcementLearning, task: Any, start: Start, rate: float, seed: int
) -> float:
    """The environment steps until the target is reached, at most the limit; else infinity."""
    env, horizon = TaskVecEnv(source.distribution, task, source.episodes), source.distribution.horizon
    steps = source.episodes * horizon  # of a rollout
    settings: Any = {"n_steps": horizon, "learning_rate": rate, "actions": source.actions, "seed": seed}
    if given.optimizer == "adam":
        model = to_sb3(source.policy, start.params, env, batch_size=max(1, steps // 4), **settings)
    else:
        settings |= {"batch_size": steps, "n_epochs": 1, "gae_lambda": 1.0, "vf_coef": 0.01, "max_grad_norm": math.inf}
        model = to_sb3(source.policy, start.params, env, **settings)
        model.policy.optimizer = torch.optim.SGD(model.policy.parameters(), lr=rate)
    stop = UntilReturn(given.target)
    rollouts = max(given.limit - start.env_steps, 0) // steps  # PPO only ends after whole ones
    model.learn(rollouts * steps, callback=stop)
    return math.inf if stop.reached is None else start.env_steps + stop.reached


def choose_rate(given: Arguments, learner: MetaLearner) -> float:
    """The learning rate of PPO.

    Raises:
        ValueError: when it must be given, or is not positive.
    """
    rate = given.learning_rate
    if rate is None:
        rate = 1e-3 if given.optimizer == "adam" else learner.inner_lr
    if rate is None:
        raise ValueError(f"learning_rate must be given, because {given.run} learned its inner step sizes; got None")
    return check_real("learning_rate", rate)


def table(steps: dict[str, list[float]], given: Arguments) -> str:
    """The mean number of steps, its interval over tasks, the median, and how many tasks reached the target."""
    rows = []
    for name, taken in steps.items():
        numbers = np.minimum(taken, given.limit)
        mean = with_interval(float(numbers.mean()), confidence_interval(numbers), 0)
        reached = int(np.isfinite(taken).sum())
        rows.append([name, mean, f"{np.median(numbers):.0f}", f"{reached} of {given.goals}"])
    return markdown_table([f"PPO to a return of {given.target:g}", "environment steps", "median", "reached"], rows)


if __name__ == "__main__":
    main()
