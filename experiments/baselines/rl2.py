"""RL^2: a recurrent policy that learns to adapt within a trial of several episodes, trained with PPO.

    metarl baseline rl2 --env navigation --env-steps 12000000 --seed 0 --name rl2
    metarl baseline rl2 --resume runs/rl2 --env-steps 24000000

Adaptation needs no gradients: the hidden state goes on from episode to episode. The result has the return of episode
1, 2, ..., K of a trial on held-out tasks, and the environment steps spent before each of them. The folder has what a
run of `metarl train` has. Ctrl-C or SIGTERM finishes the iteration and saves.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro
from matplotlib.figure import Figure

from metarl import MetaLearner, make_method
from metarl.agents.rl2 import RecurrentPolicy, RecurrentPPO, RecurrentTrials
from metarl.agents.rl2.ppo import episode_returns
from metarl.callbacks import Callback, Metrics, add_scores
from metarl.devices import pick_device
from metarl.engine import Engine
from metarl.errors import check_choice, check_int
from metarl.experiments import train
from metarl.experiments.baselines.result import AXES, BaselineResult, describe, make_result, read_result, write_result
from metarl.experiments.baselines.runs import train_in
from metarl.experiments.common import cli
from metarl.experiments.common.config import LoopConfig, settings
from metarl.experiments.common.figures import new_figure
from metarl.experiments.common.run import Run, finish, open_run, train_run
from metarl.experiments.train import TrainConfig
from metarl.processes import ALONE, Processes
from metarl.random import Stream, stream_generator
from metarl.schedules import SCHEDULES
from metarl.statistics import confidence_interval
from metarl.types import Params


@dataclass(frozen=True, kw_only=True)
class RL2Config(LoopConfig):
    """Settings of an RL^2 run. It trains in one process."""

    script: ClassVar[str] = "metarl baseline rl2"

    iterations: Annotated[int, tyro.conf.Suppress] = 0
    """Iterations in total; follows from `env_steps`."""
    env: str = "navigation"
    """Task distribution (docs/environments.md)."""
    env_options: tuple[str, ...] = ()
    """Options of the task distribution as name=value."""
    env_steps: int = 12_000_000
    """Environment steps of training, at most. Episodes that end early leave some over."""
    meta_batch_size: int = 20
    """Tasks per iteration."""
    trials: int = 5
    """Trials per task and iteration."""
    trial_episodes: int = 4
    """Episodes of a trial; the hidden state is kept between them."""
    horizon: int | None = None
    """Maximum steps per episode. Default: the environment's."""
    units: int = 64
    """Units of the gated recurrent layer."""
    log_std_init: float = -0.5
    """Logarithm of the initial standard deviation of continuous actions."""
    actions: Literal["clip", "rescale", "squash"] = "clip"
    """How actions reach a Box: clip them, rescale [-1, 1] to the box, or squash them with tanh."""
    learning_rate: float = 3e-3
    """Step size of Adam."""
    epochs: int = 4
    """PPO's passes over the trials of an iteration."""
    minibatches: int = 4
    """Parts of the trials in each pass; a step of Adam for each."""
    clip: float = 0.2
    """PPO's limit of ratios: 1 - clip to 1 + clip."""
    value_coefficient: float = 0.5
    """Weight of the value's squared error."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy."""
    discount: float = 0.99
    """Discount factor, over the whole trial. Reported returns are undiscounted."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation, over the whole trial."""
    truncate: int | None = None
    """Steps of truncated backpropagation through time. Default: the whole trial."""
    max_grad_norm: float | None = 0.5
    """Clip the gradient of each step to this norm."""

    @property
    def about(self) -> str:
        """The task distribution."""
        return self.env

    @property
    def algorithm(self) -> str:
        """Its name."""
        return "rl2"

    def settle(self) -> Self:
        """The same with the iterations that `env_steps` pay for.

        Raises:
            ValueError: when these are none.
        """
        sizes = (self.meta_batch_size, self.trials, self.trial_episodes)
        for name in ("env_steps", "meta_batch_size", "trials", "trial_episodes"):
            check_int(name, getattr(self, name))
        iteration = sizes[0] * sizes[1] * sizes[2] * train.build_distribution(self.as_train_config()).horizon
        if self.env_steps < iteration:
            wanted = f"env_steps must be enough for an iteration, at least {iteration}"
            raise ValueError(f"{wanted} = meta_batch_size x trials x trial_episodes x horizon, got {self.env_steps}")
        return dataclasses.replace(self, iterations=self.env_steps // iteration)

    @classmethod
    def parse(
        cls, arguments: Sequence[str], description: str | None, processes: Processes, saved: Self | None = None
    ) -> Self:
        """The settings on the command line, with the number of iterations."""
        config = super().parse(arguments, description, processes, saved)
        return cli.prepare(config.settle, processes)

    def as_train_config(self) -> TrainConfig:
        """The settings of the environment, for the functions of `metarl train`."""
        names = ("env", "env_options", "horizon", "plugins")
        cli.import_plugins(self.plugins)
        return TrainConfig(**{name: getattr(self, name) for name in names})

    def build_learner(self, processes: Processes = ALONE) -> MetaLearner:
        """The learner before training. Checks every setting."""
        if processes.size > 1:
            raise ValueError(f"rl2 trains in one process, got {processes.size}; start it without torchrun")
        for name in ("iterations", "eval_every", "eval_tasks", "save_every"):
            check_int(name, getattr(self, name))
        check_int("eval_seed", self.eval_seed, minimum=0)
        annealed = self.anneal_iterations and check_int("anneal_iterations", self.anneal_iterations, minimum=0)
        source = build_source(self)
        source.check_size(self.meta_batch_size, "meta_batch_size")
        step = RecurrentPPO(
            source.initial_params(),
            source,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            minibatches=self.minibatches,
            max_grad_norm=self.max_grad_norm,
            schedule=SCHEDULES[self.anneal](annealed) if annealed else None,
            seed=self.seed,
        )
        # the update that does not adapt: RL^2 does it in the rollouts
        method = make_method("multitask")
        return MetaLearner.from_parts(source, method, step, meta_batch_size=self.meta_batch_size, seed=self.seed)


def build_source(config: RL2Config) -> RecurrentTrials:
    """The source of training tasks."""
    distribution = train.build_distribution(config.as_train_config())
    policy = RecurrentPolicy(
        distribution.observation_space,
        distribution.action_space,
        config.units,
        config.log_std_init,
        config.actions,
        check_int("seed", config.seed, minimum=0),
    )
    names = ("trials", "discount", "gae_lambda", "clip", "value_coefficient", "entropy_coefficient", "truncate")
    return RecurrentTrials(
        distribution,
        policy,
        episodes=config.trial_episodes,
        device=pick_device(config.device),
        **{name: getattr(config, name) for name in names},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script; the first argument may be the baseline's name."""
    words = list(arguments or [])
    with open_run(RL2Config, words[1:] if words[:1] == ["rl2"] else words, __doc__) as run:
        learn(run)


SHARED = (
    *("env", "env_options", "horizon", "actions", "log_std_init", "discount", "device", "seed", "plugins"),
    *("eval_every", "eval_tasks", "eval_seed", "save_every"),
)
"""Settings that RL^2 takes from a configuration of `metarl train`."""


def run_rl2(config: TrainConfig, folder: Path, env_steps: int, **options: Any) -> BaselineResult:
    """Train in the run folder `folder` for `env_steps`; the result has the returns of the episodes of a trial.

    The environment, the seed, the device and the initial spread of actions are those of `config`; `options` are other
    settings of `RL2Config`, such as `trial_episodes`.

    Raises:
        ValueError: for an option that it does not have.
    """
    found = read_result(train_in(folder, make_config(config, env_steps, **options), learn))
    assert found is not None
    return found


def make_config(config: TrainConfig, env_steps: int, **options: Any) -> RL2Config:
    """The settings of `run_rl2`.

    Raises:
        ValueError: for an option that it does not have.
    """
    own = {field.name for field in dataclasses.fields(RL2Config)} - {*SHARED, "env_steps", "iterations", "resume"}
    for name in options:
        check_choice("options of rl2", name, sorted(own))
    given = {name: getattr(config, name) for name in SHARED}
    return RL2Config(**{**given, "env_steps": env_steps, **options})


def learn(run: Run[RL2Config]) -> None:
    """Train to the end, then evaluate."""
    train_run(run, [make_evaluation(run.config)])
    report(run)
    print(f"the curve and the checkpoint are in {run.folder}; watch them: tensorboard --logdir {run.folder.parent}")


def report(run: Run[RL2Config]) -> None:
    """Evaluate on the held-out tasks of `metarl train`, and save numbers and picture."""
    with Engine().current():
        result = evaluate(run.learner, train.FINAL_TASKS, train.FINAL_EPISODES, train.FINAL_SEED)
    parameters = sum(leaf.numel() for leaf in run.learner.params.values())
    finish(run, {**result.summary(), "parameters": parameters}, {"adaptation": episode_figure(result, run.config.env)})
    write_result(run.folder, result, settings(run.config))
    print(describe(result))


def evaluate(learner: MetaLearner, num_tasks: int, trials: int, seed: int) -> BaselineResult:
    """The mean return of each episode of `trials` trials on held-out tasks, those of `MetaLearner.evaluate`.

    `env_steps` are those of one trial in each task before the episode: what the policy has seen of it.
    """
    source = learner.source
    assert isinstance(source, RecurrentTrials)
    returns, lengths = held_out_returns(source, learner.params, num_tasks, trials, seed)
    before = [float(lengths[:, :k].sum()) for k in range(source.episodes)]
    points = range(1, source.episodes + 1)
    return make_result("rl2", AXES["rl2"], points, returns, [round(b) for b in before], learner.counts["env_steps"])


def held_out_returns(
    source: RecurrentTrials, params: Params, num_tasks: int, trials: int, seed: int
) -> tuple[Any, Any]:
    """Mean returns and lengths of every episode of a trial, arrays `[tasks, K]`."""
    many = dataclasses.replace(source, trials=trials)
    tasks = many.sample(num_tasks, stream_generator(seed, Stream.HELD_OUT_TASKS))
    return tuple(x.double().cpu().numpy() for x in episode_returns(tasks, params))  # type: ignore[return-value]


class TrialEvaluation(Callback):
    """Adds `eval/return_episode_k` to the metrics every `every` iterations, always on the same held-out tasks.

    `eval_ci95/return_episode_k` is half the width of its 95 % interval over the tasks.
    """

    def __init__(self, every: int, num_tasks: int, seed: int) -> None:
        self.every, self.num_tasks, self.seed = every, num_tasks, seed

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        """Evaluate, if it is time."""
        if learner.iterations % self.every == 0:
            source = learner.source
            assert isinstance(source, RecurrentTrials)
            returns, _ = held_out_returns(source, learner.params, self.num_tasks, source.trials, self.seed)
            ci95 = [confidence_interval(column) for column in returns.T]
            add_scores(metrics, "return_episode", range(1, source.episodes + 1), returns.mean(0).tolist(), ci95)


def make_evaluation(config: RL2Config) -> TrialEvaluation:
    """The evaluation during training."""
    return TrialEvaluation(config.eval_every, config.eval_tasks, config.eval_seed)


def episode_figure(result: BaselineResult, env: str) -> Figure:
    """The mean return of every episode of a trial, with its 95 % band over tasks."""
    figure = new_figure(5.5, 3.8)
    ax, columns = figure.subplots(), result.scores.T
    (line,) = ax.plot(result.points, columns.mean(1), marker="o", markersize=5)
    ends = [confidence_interval(column) for column in columns]
    if all(interval is not None for interval in ends):
        low, high = zip(*ends, strict=True)
        ax.fill_between(result.points, low, high, alpha=0.2, color=line.get_color())
    ax.set(xlabel="episode of a trial", ylabel="return", xticks=result.points)
    ax.set_title(f"{env}, RL^2: held-out tasks", fontsize=10)
    ax.grid(alpha=0.3)
    return figure
