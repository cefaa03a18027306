"""The settings of a training run, and what they build. A run's folder holds them as `config.json`."""

import dataclasses
import json
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from agents import PolicyModule, make_policy
from envs import ENVS, make_distribution
from envs.tasks import FunctionalTasks
from experiments.cli import import_plugins, pick_device
from metarl import MetaLearner, checkpoint
from metarl.errors import check_choice, check_int, check_real
from metarl.rl import ReinforcementLearning

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run."""

    env: str = "navigation"
    """Task distribution: navigation, navigation_ring, point_velocity."""
    outer: str = "maml"
    """Outer update: maml, fo_maml, hf_maml, multi_step_maml, e_maml, sign_maml, moreau, reptile, imaml, or your own."""
    iterations: int = 150
    """Meta-iterations in all."""
    inner_steps: int | None = None
    """Inner steps N; default: the method's own (1, but 3 for multi_step_maml, moreau and reptile, 5 for imaml)."""
    inner_lr: float | None = None
    """Inner step size alpha; default: the method's own (0.1, but far less for sign_maml)."""
    surrogate: str = "ratio"
    """Inner and outer surrogate loss: ratio, dice, loaded_dice or reinforce."""
    dice_lambda: float | None = None
    """Lambda of loaded_dice, from 0 (as ratio) to 1 (as dice)."""
    hessian_data: Literal["fresh", "inner"] | None = None
    """D_h of maml and hf_maml: a fresh draw (default), or the inner step's again, which saves a third of the steps."""
    outer_options: tuple[str, ...] = ()
    """More options as name=value, as delta=published rho=0.5 (hf_maml), lam=2 (imaml), baseline=none (e_maml)."""
    meta_batch_size: int = 20
    """Tasks per iteration."""
    episodes: int = 20
    """Episodes per task and draw."""
    horizon: int | None = None
    """Steps per episode at most; default: the environment's own."""
    learning_rate: float = 3e-3
    """Outer step size of Adam."""
    anneal_iterations: int | None = None
    """Let the outer step size fall linearly to a tenth over so many iterations (default: all; 0: never)."""
    max_grad_norm: float | None = None
    """Clip the mean meta-gradient to this norm; default: no clipping."""
    discount: float = 0.99
    """Discount of the advantages; returns are reported undiscounted."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation."""
    baseline: str = "linear"
    """Baseline fitted per task and draw: linear, time or none."""
    hidden: tuple[int, ...] = (100, 100)
    """Units of the policy's hidden layers."""
    log_std_init: float = -0.5
    """Logarithm of the initial standard deviation of continuous actions."""
    activation: Literal["tanh", "relu", "elu"] = "tanh"
    """Activation of the policy's hidden layers."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ...; auto takes an accelerator where there is one."""
    seed: int = 0
    """Everything random follows from it."""
    eval_every: int = 10
    """Evaluate on held-out tasks every so many iterations."""
    eval_tasks: int = 20
    """Held-out tasks of the evaluations during training; the one at the end takes 40, with 40 episodes each."""
    eval_seed: int = 1000
    """Seed of the held-out tasks."""
    save_every: int = 10
    """Write a checkpoint every so many iterations."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, such as one that registers your own outer update."""
    log_dir: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Where run folders are made."""
    name: str | None = None
    """Name of the run's folder; default: environment, update, seed and time."""


LISTS = ("hidden", "outer_options", "plugins")


def build_distribution(config: TrainConfig) -> FunctionalTasks:
    """The training tasks."""
    check_choice("env", config.env, ENVS)
    return make_distribution(config.env, **({} if config.horizon is None else {"horizon": config.horizon}))


def build_policy(config: TrainConfig, distribution: FunctionalTasks) -> PolicyModule:
    """The policy network at its initial parameters."""
    for units in config.hidden:
        check_int("hidden", units)
    policy_kwargs = {
        "net_arch": {"pi": list(config.hidden), "vf": []},
        "activation_fn": ACTIVATIONS[check_choice("activation", config.activation, ACTIVATIONS)],
        "log_std_init": check_real("log_std_init", config.log_std_init, -20.0, 2.0),
    }
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
        gae_lambda=config.gae_lambda,
        baseline=config.baseline,
        device=pick_device(config.device),
    )


def learner_arguments(config: TrainConfig) -> dict[str, Any]:
    """Arguments of `MetaLearner` besides its source."""
    return {
        "outer": config.outer,
        "inner_lr": config.inner_lr,
        "inner_steps": config.inner_steps,
        "outer_options": parse_outer_options(config),
        "meta_batch_size": config.meta_batch_size,
        "learning_rate": config.learning_rate,
        "max_grad_norm": config.max_grad_norm,
        "schedule": Annealing(config.anneal_iterations) if config.anneal_iterations else None,
        "seed": config.seed,
    }


class Annealing:
    """A factor that falls linearly from 1 to 0.1 over `iterations`, then stays."""

    def __init__(self, iterations: int) -> None:
        self.iterations = check_int("anneal_iterations", iterations, minimum=0)

    def __call__(self, iteration: int) -> float:
        return 1 - 0.9 * min(iteration / self.iterations, 1.0)


def build_learner(config: TrainConfig) -> MetaLearner:
    """The learner before training; everything in the configuration has then been checked.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    import_plugins(config.plugins)
    for name in ("iterations", "eval_every", "eval_tasks", "save_every"):
        check_int(name, getattr(config, name))
    check_int("eval_seed", config.eval_seed, minimum=0)
    return MetaLearner(build_source(config), **learner_arguments(config))


def parse_outer_options(config: TrainConfig) -> dict[str, Any]:
    """The options of the outer update from `hessian_data` and `outer_options`."""
    chosen: dict[str, Any] = {} if config.hessian_data is None else {"hessian_data": config.hessian_data}
    for entry in config.outer_options:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"outer_options must be name=value, got {entry!r}")
        chosen[name] = _plain(value)
    return chosen


def _plain(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def load_run(folder: Path, **changes: Any) -> tuple[TrainConfig, MetaLearner]:
    """The run in `folder` at its last checkpoint, with some settings changed.

    Raises:
        ValueError: when the folder is not a run's, or its checkpoint is missing, truncated or another run's.
    """
    config = dataclasses.replace(from_json(folder / "config.json"), **changes)
    learner = build_learner(config)
    learner.load_state_dict(checkpoint.load(folder / "checkpoint.pt"))
    return config, learner


def step_sizes(learner: MetaLearner, steps: int, schedule: str) -> list[float]:
    """Inner step sizes at test time: `constant`, or `halved` after the steps that were trained (Finn et al., 2017)."""
    assert learner.inner_lr is not None  # scripts name their method
    trained = learner.method.inner.steps if schedule == "halved" else steps
    return [learner.inner_lr if step < trained else learner.inner_lr / 2 for step in range(steps)]


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The configuration with what it ran on: versions, commit, device."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    return {**settings, "versions": versions(), "commit": commit(), "device_name": device_name(config.device)}


def from_json(path: Path) -> TrainConfig:
    """The configuration in a `config.json`.

    Raises:
        ValueError: when it is not there, or is not one.
    """
    try:
        found = json.loads(path.read_text())
        fields = {field.name for field in dataclasses.fields(TrainConfig)}
        if missing := fields - set(found):
            raise ValueError(f"it lacks {sorted(missing)}")
        if wrong := [field for field in LISTS if not isinstance(found[field], list)]:
            raise ValueError(f"{wrong} must be lists")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in fields}
        return TrainConfig(**{**settings, "log_dir": Path(settings["log_dir"])})
    except OSError as error:
        raise ValueError(f"run must be the folder of a training run; {path} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"run must be the folder of a training run; {path} is not its configuration: {error}"
        ) from None


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("metarl-torch", "torch", "gymnasium", "stable-baselines3", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "not installed"


def commit() -> str | None:
    """The commit of the source tree this runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(name: str) -> str:
    """The device's name, and the number of threads on the CPU."""
    device = pick_device(name)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
