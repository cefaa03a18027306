"""The settings of a reinforcement-learning run, and what they build."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from metarl import MetaLearner
from metarl.agents import PolicyModule, make_policy
from metarl.envs import ENVS, constructor, make_distribution
from metarl.envs.base import EnvDistribution
from metarl.errors import check_choice, check_int, check_real
from metarl.experiments.common import options
from metarl.experiments.common.cli import pick_device
from metarl.experiments.common.run import Recipe, RunConfig, check_shared, learner_arguments
from metarl.memory import check_fits, space_numbers
from metarl.processes import ALONE, Processes
from metarl.rl import ReinforcementLearning

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Settings of one training run in reinforcement learning; the evaluation at its end takes 40 tasks, 40 episodes."""

    env: str = "navigation"
    """Task distribution: navigation, grid_world, cart_pole_goal, half_cheetah_velocity, ... (docs/environments.md)."""
    env_options: tuple[str, ...] = ()
    """Its options as name=value, as goal_high=3 (half_cheetah_velocity), healthy_reward=1 (ant_direction)."""
    meta_batch_size: int = 20
    """Tasks per iteration."""
    learning_rate: float = 3e-3
    """Outer step size of Adam."""
    surrogate: str = "ratio"
    """Inner and outer surrogate loss: ratio, dice, loaded_dice or reinforce."""
    dice_lambda: float | None = None
    """Lambda of loaded_dice, from 0 (as ratio) to 1 (as dice)."""
    episodes: int = 20
    """Episodes per task and draw."""
    horizon: int | None = None
    """Steps per episode at most; default: the environment's own."""
    discount: float = 0.99
    """Discount of the advantages; returns are reported undiscounted."""
    discount_weights: bool = False
    """Weigh step t by discount^t, so that the gradient is that of the discounted return."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation."""
    baseline: str | None = None
    """Baseline fitted per task and draw: linear (default), time (default for images and wide vectors) or none."""
    cross_fit: bool = False
    """Fit each episode's baseline to the task's other episodes: an unbiased policy gradient."""
    actions: Literal["clip", "rescale", "squash"] = "clip"
    """How actions reach a Box: clipped, rescaled so that [-1, 1] is the whole box, or squashed by tanh."""
    normalize_observations: bool = False
    """Normalise observations by running statistics of the training draws, which are saved with the run."""
    hidden: tuple[int, ...] = (100, 100)
    """Units of the policy's hidden layers."""
    log_std_init: float = -0.5
    """Logarithm of the initial standard deviation of continuous actions."""
    activation: Literal["tanh", "relu", "elu"] = "tanh"
    """Activation of the policy's hidden layers."""
    features_dim: int = 64
    """Outputs of the convolutions, before the hidden layers, where observations are images."""


def build_distribution(config: TrainConfig) -> EnvDistribution:
    """The training tasks."""
    check_choice("env", config.env, ENVS)
    given = options.read("env_options", config.env_options, constructor(config.env))
    if config.horizon is not None:
        if "horizon" in given:
            raise ValueError(f"env_options must not have horizon, which has been given as --horizon {config.horizon}")
        given["horizon"] = config.horizon
    return make_distribution(config.env, **given)


def build_policy(config: TrainConfig, distribution: EnvDistribution) -> PolicyModule:
    """The policy network at its initial parameters."""
    numbers = space_numbers(distribution.observation_space)
    widths = [numbers, *(check_int("hidden", units) for units in config.hidden)]
    tasks = check_int("meta_batch_size", config.meta_batch_size)
    weights = sum(before * after for before, after in pairwise(widths)) * tasks
    check_fits(f"meta_batch_size x hidden = {config.meta_batch_size} x {config.hidden}", weights)
    policy_kwargs: dict[str, Any] = {
        "net_arch": {"pi": list(config.hidden), "vf": []},
        "activation_fn": ACTIVATIONS[check_choice("activation", config.activation, ACTIVATIONS)],
        "log_std_init": check_real("log_std_init", config.log_std_init, -20.0, 2.0),
    }
    features_dim = check_int("features_dim", config.features_dim)
    if is_image_space(distribution.observation_space):
        policy_kwargs["features_extractor_kwargs"] = {"features_dim": features_dim}
    spaces = distribution.observation_space, distribution.action_space
    return make_policy(*spaces, policy_kwargs=policy_kwargs, seed=check_int("seed", config.seed, minimum=0))


def build_source(config: TrainConfig) -> ReinforcementLearning:
    """The source of training tasks."""
    distribution = build_distribution(config)
    return ReinforcementLearning(
        distribution,
        build_policy(config, distribution),
        episodes=config.episodes,
        surrogate=config.surrogate,
        dice_lambda=config.dice_lambda,
        discount=config.discount,
        discount_weights=config.discount_weights,
        gae_lambda=config.gae_lambda,
        baseline=config.baseline,
        cross_fit=config.cross_fit,
        actions=config.actions,
        normalize_observations=config.normalize_observations,
        device=pick_device(config.device),
    )


def build_learner(config: TrainConfig, processes: Processes = ALONE) -> MetaLearner:
    """The learner before training; everything in the configuration has then been checked.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    check_shared(config)
    arguments = {**learner_arguments(config, processes), "learning_rate": config.learning_rate}
    source = build_source(config)
    source.check_size(config.eval_tasks, "eval_tasks")
    return MetaLearner(source, meta_batch_size=config.meta_batch_size, **arguments)


ADDED = {"discount_weights": False, "cross_fit": False, "actions": "clip", "normalize_observations": False}
"""Settings that runs of older versions do not have, and what they trained with."""

TRAIN = Recipe("metarl train", TrainConfig, build_learner, lambda config: config.env, added=ADDED)
