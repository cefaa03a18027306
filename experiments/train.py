"""Meta-train on a task distribution, then evaluate on held-out tasks and draw what was learned.

    metarl train --env navigation --outer maml --iterations 150 --seed 0 --log-dir runs --name nav
    metarl train --resume runs/nav --iterations 300
    torchrun --nproc-per-node 4 -m metarl.experiments.train --env navigation --name nav4

The run folder gets `config.json`, `metrics.jsonl` (a line per iteration), TensorBoard events, `checkpoint.pt` and, at
the end, `evaluation.json`, `adaptation.png` and `trajectories.png`. Ctrl-C or SIGTERM finishes the iteration and saves.
"""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self, cast

from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from metarl import MetaLearner
from metarl.agents import PolicyModule, make_context_policy, make_policy
from metarl.callbacks import Callback, HeldOutEvaluation
from metarl.context import WithContext
from metarl.devices import pick_device
from metarl.envs import ENVS, ObserveTask, constructor, make_distribution
from metarl.envs.base import EnvDistribution
from metarl.envs.own import module_of
from metarl.errors import check_choice, check_int, check_real
from metarl.experiments.common import cli, options
from metarl.experiments.common.config import RunConfig, learner_arguments
from metarl.experiments.common.evaluation import evaluate_held_out, step_sizes
from metarl.experiments.common.figures import adaptation_figure, trajectory_figure
from metarl.experiments.common.outer_steps import APPLY, OPTIMIZERS, STEPS, check_step, make_learner
from metarl.experiments.common.pictures import TrajectoryPictures
from metarl.experiments.common.run import Run, finish, open_run, train_run
from metarl.experiments.common.tables import markdown_table
from metarl.inner_search import try_inner_step_sizes
from metarl.memory import check_fits, space_numbers
from metarl.outer import options as update_options
from metarl.processes import ALONE, Processes
from metarl.rl import ReinforcementLearning
from metarl.rl.oracle import BaselineName

EVALUATION_STEPS = 3
LEARNING_RATE = 3e-3
FINAL_TASKS, FINAL_EPISODES, FINAL_SEED = 40, 40, 1000
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Settings of a reinforcement-learning run. The evaluation at its end takes 40 tasks of 40 episodes."""

    script: ClassVar[str] = "metarl train"
    added: ClassVar[Mapping[str, Any]] = {
        **RunConfig.added,
        **{"discount_weights": False, "cross_fit": False},
        **{"actions": "clip", "normalize_observations": False, "outer_step": "adam", "context_size": 0},
        **{"observe_task": False, "picture_every": None},
    }

    env: str = "navigation"
    """Task distribution: navigation, grid_world, cart_pole_goal, half_cheetah_velocity, ... (metarl list envs), or your
    own: module:object, such as my_envs:Pendulums (docs/environments.md)."""
    env_options: tuple[str, ...] = ()
    """Options of the task distribution as name=value, for example goal_high=3 (half_cheetah_velocity)."""
    observe_task: bool = False
    """Append the task's parameters to the observation. With --outer multitask this trains the oracle of comparisons."""
    meta_batch_size: int = 20
    """Tasks per iteration."""
    outer_step: Literal["adam", "sgd", "alpha_maml", "proximal", "trust_region"] = "adam"
    """Outer step: adam, sgd, descent whose step sizes adapt by hypergradients (alpha_maml), several steps of adam on
    the same draws (proximal), or natural-gradient steps of bounded divergence between adapted policies (trust_region).
    """
    learning_rate: float | None = None
    """Outer step size; the initial one of alpha_maml. Default: 3e-3."""
    surrogate: str = "ratio"
    """Inner and outer surrogate loss: ratio, dice, loaded_dice or reinforce."""
    dice_lambda: float | None = None
    """Lambda of loaded_dice, from 0 (ratio) to 1 (dice)."""
    episodes: int = 20
    """Episodes per task and draw."""
    horizon: int | None = None
    """Maximum steps per episode. Default: the environment's."""
    discount: float = 0.99
    """Discount factor of the advantages. Reported returns are undiscounted."""
    discount_weights: bool = False
    """Weight step t by discount^t: the gradient of the discounted return."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation."""
    baseline: str | None = None
    """Baseline, fitted per task and draw: linear (default), time (default for images and wide vectors) or none."""
    cross_fit: bool = False
    """Fit each episode's baseline to the other episodes of its task: an unbiased policy gradient."""
    actions: Literal["clip", "rescale", "squash"] = "clip"
    """How actions reach a Box: clip them, rescale [-1, 1] to the box, or squash them with tanh."""
    normalize_observations: bool = False
    """Normalise observations by running statistics of the training draws, saved with the run."""
    hidden: tuple[int, ...] = (100, 100)
    """Units of the policy's hidden layers."""
    log_std_init: float = -0.5
    """Logarithm of the initial standard deviation of continuous actions."""
    activation: Literal["tanh", "relu", "elu"] = "tanh"
    """Activation function of the policy's hidden layers."""
    features_dim: int = 64
    """Outputs of the convolutions, for image observations."""
    context_size: int = 0
    """Context inputs of the policy; inner steps then adapt them alone, from zero, unless --adapt names others."""
    picture_every: int | None = None
    """Draw trajectories on held-out tasks into TensorBoard every this many iterations. Default: at the end only."""
    find_inner_lr: bool = False
    """Do not train: try five inner step sizes on the untrained policy and print what one step does."""

    @property
    def about(self) -> str:
        """The task distribution."""
        return self.env

    def settle(self) -> Self:
        """The same with the defaults of the outer step."""
        applies = APPLY[check_choice("outer_step", self.outer_step, (*OPTIMIZERS, *STEPS))]
        missing: dict[str, Any] = {}
        if self.learning_rate is None and "learning_rate" in applies:
            missing["learning_rate"] = LEARNING_RATE
        if self.anneal_iterations is None and "anneal_iterations" not in applies:
            missing["anneal_iterations"] = 0
        step = STEPS.get(self.outer_step)
        given = [entry.partition("=")[0] for entry in self.outer_options]
        if step and step.replays and self.hessian_data is None and "hessian_data" not in given:
            cli.import_plugins(self.plugins)
            if "hessian_data" in update_options(self.outer):
                missing["hessian_data"] = "reuse"
        return dataclasses.replace(self, **missing) if missing else self

    def build_learner(self, processes: Processes = ALONE) -> MetaLearner:
        """The learner before training. Checks every setting."""
        config = self.settle()
        arguments = {**learner_arguments(config, processes), "meta_batch_size": config.meta_batch_size}
        check_step(config.outer_step, vars(config), arguments)
        source = build_source(self)
        source.check_size(self.eval_tasks, "eval_tasks")
        if self.picture_every is not None:
            check_int("picture_every", self.picture_every)
        return make_learner(config.outer_step, source, config.step_options, config.learning_rate, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    words = sys.argv[1:] if arguments is None else arguments
    if "--find-inner-lr" in words:
        find_inner_lr(words)
        return
    with open_run(TrainConfig, arguments, __doc__) as run:
        train(run)


@cli.one_line_errors()
def find_inner_lr(words: list[str]) -> None:
    """Print the return before and after one step of each of five sizes, and the divergence of the policies."""
    config = TrainConfig.parse(words, __doc__, ALONE)
    learner = cli.prepare(config.build_learner)
    assert learner.method.recipe is not None
    sizes = [float(f"{learner.method.recipe.inner_lr * factor:.3g}") for factor in FACTORS]
    rows = [
        [
            f"{trial.inner_lr:g}",
            f"{trial.before:.4g}",
            f"{trial.after:.4g}",
            "" if trial.kl is None else f"{trial.kl:.3g}",
        ]
        for trial in try_inner_step_sizes(learner, sizes, num_tasks=config.eval_tasks, seed=config.eval_seed)
    ]
    print(f"one inner step from the untrained policy, means over {config.eval_tasks} held-out tasks")
    print(markdown_table(["inner_lr", "return before", "return after", "KL(before, after)"], rows, align=True))


FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the method's own inner step size."""


# Before training: tasks, policy and source. `TrainConfig.build_learner` makes a learner of them.


def build_distribution(config: TrainConfig) -> EnvDistribution:
    """The training tasks."""
    if own := module_of(config.env):
        cli.import_plugins([own], "env")
    else:
        check_choice("env", config.env, ENVS)
    given = options.read("env_options", config.env_options, constructor(config.env))
    if config.horizon is not None:
        if "horizon" in given:
            raise ValueError(f"env_options must not have horizon, which is given as --horizon {config.horizon}")
        given["horizon"] = config.horizon
    found = make_distribution(config.env, **given)
    return ObserveTask(found) if config.observe_task else found


def build_policy(config: TrainConfig, distribution: EnvDistribution) -> PolicyModule | WithContext:
    """The policy network at its initial parameters."""
    # Refuse sizes that do not fit into memory before anything is allocated.
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
    seed = check_int("seed", config.seed, minimum=0)
    if check_int("context_size", config.context_size, minimum=0):
        return make_context_policy(*spaces, config.context_size, policy_kwargs=policy_kwargs, seed=seed)
    return make_policy(*spaces, policy_kwargs=policy_kwargs, seed=seed)


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
        baseline=cast("BaselineName | None", config.baseline),  # checked where it is used
        cross_fit=config.cross_fit,
        actions=config.actions,
        normalize_observations=config.normalize_observations,
        device=pick_device(config.device),
    )


# Training, and what comes after it.


def train(run: Run[TrainConfig], progress: Callback | None = None) -> None:
    """Train to the end with a progress bar, or `progress` instead; then evaluate and draw."""
    config, folder = run.config, run.folder
    callbacks: list[Callback] = [make_evaluation(run)]
    if config.picture_every is not None:
        sizes = step_sizes(run.learner, EVALUATION_STEPS)
        callbacks.append(TrajectoryPictures(folder, config.picture_every, sizes, config.eval_seed))
    train_run(run, callbacks, progress=progress)
    report(run)
    print(f"curves, pictures and the checkpoint are in {folder}; watch them with: tensorboard --logdir {folder.parent}")


def make_evaluation(run: Run[TrainConfig]) -> HeldOutEvaluation:
    """The evaluation during training."""
    config, sizes = run.config, step_sizes(run.learner, EVALUATION_STEPS)
    latest = run.folder / "held_out.json"
    return HeldOutEvaluation(config.eval_every, None, config.eval_tasks, sizes, config.eval_seed, latest)


def report(run: Run[TrainConfig]) -> None:
    """Evaluate on held-out tasks, shared by all processes; the first one saves numbers and pictures."""
    config, learner, source = run.config, run.learner, run.learner.source
    assert isinstance(source, ReinforcementLearning)
    sizes = step_sizes(learner, EVALUATION_STEPS)
    more_episodes = dataclasses.replace(source, episodes=FINAL_EPISODES)
    curves = evaluate_held_out(learner, more_episodes, FINAL_TASKS, sizes, FINAL_SEED)
    if not learner.processes.is_first:
        return

    adaptation = adaptation_figure(curves.by_label(), f"{config.env}, {config.outer}: held-out tasks")
    with learner.engine.current():
        trajectories = trajectory_figure(source, learner.params, learner.rules(sizes), 4, config.eval_seed)
    finish(run, curves.summary(), {"adaptation": adaptation, "trajectories": trajectories})
    print(curves.table("return", digits=2))


if __name__ == "__main__":
    main()
