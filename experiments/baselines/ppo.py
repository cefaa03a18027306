"""PPO of Stable-Baselines3 on every held-out task alone: from scratch, or fine-tuning the policy of a run.

    metarl baseline ppo --env navigation --tasks 20 --budgets 1 10 100
    metarl baseline ppo --run runs/nav --tasks 20 --budgets 1 10 --name ppo-from-maml
    metarl baseline ppo --run runs/multitask-navigation-0 --budgets 0.5 1 2 --reach -10

Budgets are multiples of the environment steps of a whole adaptation at the end of `metarl train`: its gradient steps
times episodes times horizon, 12,000 on navigation. The network is that of the run, with a new critic of the same size;
PPO's settings are SB3's, except that a rollout has the episodes and the horizon of the run, or of --options. Scores are
mean returns of sampled actions. Finished tasks are kept in the folder, so the same command continues after an
interruption.
"""

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3 import PPO
from torch import Tensor
from tqdm import tqdm

import metarl
from metarl import checkpoint
from metarl.agents import PolicyModule, TaskVecEnv, make_policy, to_sb3
from metarl.derivatives import scores
from metarl.engine import Engine
from metarl.envs.base import EnvDistribution
from metarl.errors import check_choice, check_int, check_real
from metarl.experiments import train
from metarl.experiments.baselines.result import AXES, BaselineResult, make_result
from metarl.experiments.baselines.runs import fingerprint
from metarl.experiments.common.config import settings
from metarl.experiments.common.options import check_distinct, read
from metarl.experiments.common.packages import read_any_config
from metarl.experiments.train import TrainConfig
from metarl.random import Stream, global_seed, stream_generator
from metarl.rl import ReinforcementLearning
from metarl.rl.normalization import NormalizedPolicy
from metarl.types import Params, TaskParams

BATCH = 64
"""SB3's minibatches; here the largest divisor of a rollout up to this."""

OWN = {"policy", "env", "policy_kwargs", "seed", "use_sde", "device", "_init_setup_model"}
"""Arguments of PPO that the baseline sets itself."""


class Start(NamedTuple):
    """Where PPO begins: a source with the policy, its parameters, and what they cost."""

    source: ReinforcementLearning
    params: Params
    train_env_steps: int
    about: str | None  # the digest of the run's parameters; from scratch: `None`


class Plan(NamedTuple):
    """What PPO does on every task."""

    begin: Start
    config: TrainConfig
    targets: Sequence[int]  # environment steps after which the parameters are kept
    ppo: Mapping[str, Any]  # arguments of PPO

    def learn(self, path: Path, task: TaskParams, seed: int) -> list[Params]:
        """The parameters after each of the targets on one task; read from `path` if they are there.

        Raises:
            ValueError: when another plan made them.
        """
        begun = [self.begin.about, self.begin.train_env_steps]
        made_by = json.dumps([begun, self.targets, self.ppo, seed, settings(self.config)], default=str)
        if path.is_file():
            state = checkpoint.load(path)
            if state.get("made_by") != made_by:
                raise ValueError(f"{path} was made with other settings; choose another folder")
            return list(state["params"])
        begin, found = self.begin, []
        policy: Any = begin.source.policy  # made by `with_critic`
        env = TaskVecEnv(begin.source.distribution, task, self.config.episodes)
        # SB3 seeds the global generators and draws from them
        with contextlib.closing(env), global_seed(seed):
            model = to_sb3(policy, begin.params, env, seed=seed, **self.ppo)
            for target in self.targets:
                model.learn(target - model.num_timesteps, reset_num_timesteps=False)
                found.append(read_params(model, begin.params))
        checkpoint.save(path, {"made_by": made_by, "params": found})
        return found


def run_ppo(
    config: TrainConfig,
    folder: Path,
    env_steps: int,
    *,
    start: Path | None = None,
    tasks: int = 20,
    budgets: Sequence[float] = (1, 10),
    ppo_options: Sequence[str] = (),
) -> BaselineResult:
    """Run PPO on each of the first `tasks` held-out tasks, and score it after each of `budgets`.

    Args:
        config: the environment, the network's size, and the sizes of PPO's rollouts. A run at `start` has its own.
        folder: keeps the parameters of finished tasks.
        env_steps: not used; PPO sees no tasks before.
        start: the run, or the package of a run, whose policy is fine-tuned; default: a new policy, from scratch.
        tasks: held-out tasks.
        budgets: increasing multiples of the environment steps of adaptation; rounded to whole rollouts.
        ppo_options: arguments of SB3's `PPO` as name=value.

    Raises:
        ValueError: for settings that cannot work.
    """
    config, begin = read_start(config, start)
    if config.actions != "clip":
        raise ValueError(f"actions must be 'clip' for ppo, whose vector environment only clips, got {config.actions!r}")
    check_int("tasks", tasks)
    distribution = begin.source.distribution
    assert isinstance(distribution, EnvDistribution)
    ppo = ppo_settings(config, distribution.horizon, ppo_options)
    targets = rollout_targets(budgets, distribution.horizon, ppo["n_steps"] * config.episodes)
    held_out = first_tasks(distribution, tasks)
    plan = Plan(begin, config, targets, ppo)
    folder.mkdir(parents=True, exist_ok=True)
    per_task = [
        plan.learn(folder / f"task_{i}.pt", {name: values[i] for name, values in held_out.items()}, config.seed + i)
        for i in tqdm(range(tasks), unit="task", dynamic_ncols=True)
    ]
    after = [
        {name: torch.stack([found[point][name] for found in per_task]) for name in begin.params}
        for point in range(len(targets))
    ]
    columns = score_points(begin.source, held_out, [start_params(begin, tasks), *after])
    unit = adaptation_steps(distribution.horizon)
    points = [0.0, *(target / unit for target in targets)]
    spent = [0, *(target * tasks for target in targets)]
    return make_result("ppo", AXES["ppo"], points, columns.T, spent, begin.train_env_steps)


def adaptation_steps(horizon: int) -> int:
    """The environment steps of a whole adaptation to one task at the end of `metarl train`, at most."""
    return train.EVALUATION_STEPS * train.FINAL_EPISODES * horizon


def rollout_targets(budgets: Sequence[float], horizon: int, rollout: int) -> list[int]:
    """The environment steps of each budget, in whole rollouts.

    Raises:
        ValueError: unless the budgets increase, by at least a rollout each.
    """
    check_distinct("budgets", budgets)
    unit = adaptation_steps(horizon)
    found = [max(1, round(check_real("budgets", budget) * unit / rollout)) * rollout for budget in budgets]
    if sorted(set(found)) != found:
        raise ValueError(f"budgets must increase by a rollout of {rollout} steps at least, got {found} steps")
    return found


def ppo_settings(config: TrainConfig, horizon: int, entries: Sequence[str]) -> dict[str, Any]:
    """The arguments of SB3's PPO: rollouts of `config.episodes` environments for one horizon, and `entries`."""
    known = sorted(set(inspect.signature(PPO).parameters) - OWN)
    given = read("ppo_options", entries, PPO)
    for name in given:
        check_choice("ppo_options", name, known)
    rollout = given.get("n_steps", horizon) * config.episodes
    batch = max(size for size in range(1, min(BATCH, rollout) + 1) if rollout % size == 0)
    return {"n_steps": horizon, "batch_size": batch, "gamma": config.discount, **given}


def read_start(config: TrainConfig, start: Path | None) -> tuple[TrainConfig, Start]:
    """The configuration and the policy that PPO begins with; its critic is new and has the actor's size.

    Raises:
        ValueError: for a run that cannot be read, or a policy that SB3 cannot train.
    """
    config = starting_config(config, start)
    if start is None:
        source = train.build_source(config)
        return config, Start(with_critic(config, source), source.initial_params(), 0, None)
    learner = metarl.load(start, plugins=config.plugins, device=config.device)
    found = learner.source
    if not isinstance(found, ReinforcementLearning):
        raise ValueError(f"run must be one of metarl train, {start} is not")
    known = set(found.initial_params())
    params = {name: leaf for name, leaf in learner.params.items() if name in known}  # not those of the inner rule
    return config, Start(with_critic(config, found), params, learner.counts["env_steps"], fingerprint(start))


def starting_config(config: TrainConfig, start: Path | None) -> TrainConfig:
    """The settings of the run at `start`, with the seed, device and plug-ins of `config`; without a run, `config`.

    Raises:
        ValueError: for a run that cannot be read.
    """
    if start is None:  # an untrained policy has no statistics of observations
        return dataclasses.replace(config, normalize_observations=False)
    saved = read_any_config(TrainConfig, start)
    return dataclasses.replace(saved, seed=config.seed, device=config.device, plugins=config.plugins)


def with_critic(config: TrainConfig, source: ReinforcementLearning) -> ReinforcementLearning:
    """The source with a policy whose critic has the layers of its actor, and with the episodes that measure scores."""
    network = source.policy.network if isinstance(source.policy, NormalizedPolicy) else source.policy
    if not isinstance(network, PolicyModule):
        raise ValueError(f"run must have a policy without context inputs for PPO, got {type(network).__name__}")
    layers = list(network.policy_kwargs["net_arch"]["pi"])
    kwargs = {**network.policy_kwargs, "net_arch": {"pi": layers, "vf": layers}}
    spaces = source.distribution.observation_space, source.distribution.action_space
    policy: Any = make_policy(*spaces, policy_kwargs=kwargs, seed=config.seed)
    if isinstance(source.policy, NormalizedPolicy):
        policy = NormalizedPolicy(policy, source.distribution.observation_space)
        policy.load_moments(source.state_dict())
    return dataclasses.replace(source, policy=policy, episodes=train.FINAL_EPISODES)


def first_tasks(distribution: EnvDistribution, number: int) -> TaskParams:
    """The first of the held-out tasks of `metarl train`, arrays `[number, ...]`."""
    drawn = distribution.sample(
        max(number, train.FINAL_TASKS), stream_generator(train.FINAL_SEED, Stream.HELD_OUT_TASKS)
    )
    return {name: values[:number] for name, values in drawn.items()}


def start_params(begin: Start, tasks: int) -> Params:
    """The parameters before PPO, one copy for each task."""
    return {name: leaf.expand(tasks, *leaf.shape) for name, leaf in begin.params.items()}


def read_params(model: PPO, like: Params) -> Params:
    """The actor's parameters, under the names of `like`."""
    weights = {name: leaf.detach() for name, leaf in model.policy.named_parameters()}
    return {name: weights[name.removeprefix("network.").removeprefix("policy.")].clone() for name in like}


def score_points(source: ReinforcementLearning, held_out: TaskParams, kept: Sequence[Params]) -> Any:
    """The mean return of every task at every point, `[P, tasks]`: sampled actions, `source.episodes` episodes."""
    tasks = source.tasks(held_out, stream_generator(train.FINAL_SEED, Stream.ADAPTATION))
    with Engine().current():
        found: list[Tensor] = [scores(tasks, params, tasks.draw(params, "outer")) for params in kept]
    return torch.stack(found).double().cpu().numpy()
