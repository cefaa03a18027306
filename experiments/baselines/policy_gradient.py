"""Baselines that adapt by policy-gradient steps, as the meta-trained policy does.

| name | training | adaptation |
| --- | --- | --- |
| `random` | none | the inner steps of the configuration |
| `multitask` | the outer update `multitask` | the inner steps of the configuration |
| `oracle` | `multitask`, with the task's parameters in the observation | none |
| `sb3` | that of a PPO or A2C model of Stable-Baselines3 | the inner steps of the configuration |
"""

import dataclasses
from pathlib import Path

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from metarl import AdaptationCurve, MetaLearner, evaluate
from metarl.agents import from_sb3
from metarl.envs.base import EnvDistribution
from metarl.errors import check_choice
from metarl.experiments import train
from metarl.experiments.baselines.result import BaselineResult, make_result
from metarl.experiments.baselines.runs import train_in
from metarl.experiments.common.config import read_adapt
from metarl.experiments.common.evaluation import step_sizes
from metarl.experiments.train import TrainConfig
from metarl.logging import read_metrics
from metarl.random import Stream, stream_generator
from metarl.rl import ReinforcementLearning


def run_random(config: TrainConfig, folder: Path, env_steps: int) -> BaselineResult:
    """Adapt the untrained policy of `config.seed`; `env_steps` of training are not used."""
    return adapt("random", config.build_learner(), 0)


def run_sb3(
    config: TrainConfig, folder: Path, env_steps: int, *, model: Path, algorithm: str = "ppo"
) -> BaselineResult:
    """Adapt the policy of a model that Stable-Baselines3 saved; `env_steps` of training are not used.

    SB3 unpickles a part of the file, which can run any code: only open files you trust.

    Raises:
        ValueError: when the file cannot be read, or its policy does not fit the environment or `from_sb3`.
    """
    kinds: dict[str, type[OnPolicyAlgorithm]] = {"ppo": PPO, "a2c": A2C}
    kind = kinds[check_choice("algorithm", algorithm, kinds)]
    if not Path(model).is_file():
        raise ValueError(f"model must be a file saved by Stable-Baselines3, but there is no file {model}")
    try:
        loaded = kind.load(model, device=config.device)
    except Exception as error:  # unpickling may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model must be a {algorithm} model of Stable-Baselines3, {model} is not: {reason}") from error
    if config.normalize_observations:
        raise ValueError("normalize_observations must be off for sb3: a model's file has no statistics, got True")
    plain = train.build_source(config)
    for name in ("observation_space", "action_space"):
        found, wanted = getattr(loaded, name), getattr(plain.distribution, name)
        if found != wanted:
            raise ValueError(f"model must have the {name} of {config.env}, {wanted}, got {found}")
    source = dataclasses.replace(plain, policy=from_sb3(loaded))
    adapted = read_adapt(config)
    learner = MetaLearner(source, "multitask", inner_lr=config.inner_lr, inner_steps=config.inner_steps, adapt=adapted)
    return adapt("sb3", learner, int(loaded.num_timesteps))


def adapt(baseline: str, learner: MetaLearner, train_env_steps: int) -> BaselineResult:
    """Adapt the initial parameters of the learner's source to the held-out tasks of training runs."""
    source = learner.source
    assert isinstance(source, ReinforcementLearning)
    source = dataclasses.replace(source, episodes=train.FINAL_EPISODES)
    rules = learner.rules(step_sizes(learner, train.EVALUATION_STEPS))
    tasks = source.sample(train.FINAL_TASKS, stream_generator(train.FINAL_SEED, Stream.HELD_OUT_TASKS))
    curve = evaluate(learner.method.initial_params(source), tasks, rules, engine=learner.engine)
    return make_result(
        baseline, "step", range(curve.steps + 1), curve.scores[0], curve.costs["env_steps"][0], train_env_steps
    )


def run_multitask(config: TrainConfig, folder: Path, env_steps: int) -> BaselineResult:
    """Train for `env_steps` with the update `multitask` in the run folder `folder`, then adapt."""
    trained = train_in(folder, pretraining(config, env_steps), train.train)
    return result_of_run("multitask", trained)


def run_oracle(config: TrainConfig, folder: Path, env_steps: int) -> BaselineResult:
    """Train a policy that sees the task for `env_steps` in the run folder `folder`; it does not adapt."""
    whole = result_of_run("oracle", train_in(folder, observing(config, env_steps), train.train))
    return whole._replace(points=(0,), scores=whole.scores[:, :1], env_steps=whole.env_steps[:1])


def observing(config: TrainConfig, env_steps: int) -> TrainConfig:
    """The configuration of `run_oracle`."""
    return pretraining(dataclasses.replace(config, observe_task=True), env_steps)


def pretraining(config: TrainConfig, env_steps: int) -> TrainConfig:
    """The configuration of a `multitask` run that trains for at most `env_steps`: one draw in an iteration.

    The options of other updates are left out; the inner steps are those of `config`.

    Raises:
        ValueError: when not even one iteration fits.
    """
    horizon = horizon_of(config)
    iteration = config.meta_batch_size * config.episodes * horizon
    if env_steps < iteration:
        raise ValueError(f"env_steps must be enough for an iteration, at least {iteration}, got {env_steps}")
    return dataclasses.replace(
        config,
        outer="multitask",
        iterations=env_steps // iteration,
        hessian_data=None,
        learn_inner_lr=None,
        inner_lr_rate=None,
        outer_options=(),
    )


def horizon_of(config: TrainConfig) -> int:
    """The steps of an episode, at most."""
    distribution = train.build_distribution(config)
    assert isinstance(distribution, EnvDistribution)
    return distribution.horizon


def result_of_run(baseline: str, folder: Path) -> BaselineResult:
    """The result of a finished training run, from its `evaluation.json` and `metrics.jsonl`."""
    curve = AdaptationCurve.from_json(folder / "evaluation.json")
    spent = read_metrics(folder)[-1]["oracle/env_steps"]
    assert spent is not None
    points = range(curve.steps + 1)
    return make_result(baseline, "step", points, curve.scores[0], curve.costs["env_steps"][0], int(spent))
