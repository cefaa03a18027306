"""What the training scripts share: a run's folder, how it is made, resumed, trained and loaded again.

The folder has `config.json` (the settings with versions and commit), `metrics.jsonl` (a line per iteration),
TensorBoard events, `checkpoint.pt`, and what the script leaves at the end, `evaluation.json` among it.
"""

import dataclasses
import json
import platform
import signal
import subprocess
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TextIO, TypeVar

import torch
import tyro

from experiments import cli
from experiments.cli import import_plugins, pick_device
from metarl import MetaLearner, checkpoint
from metarl.callbacks import Callback, Checkpointing, ProgressBar
from metarl.checkpoint import write_json
from metarl.errors import check_int
from metarl.logging import RunLog


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that every training run has."""

    outer: str = "maml"
    """Outer update: maml, fo_maml, hf_maml, multi_step_maml, e_maml, sign_maml, moreau, reptile, imaml, or your own."""
    iterations: int = 150
    """Meta-iterations in all."""
    inner_steps: int | None = None
    """Inner steps N; default: the method's own (1, but 3 for multi_step_maml, moreau and reptile, 5 for imaml)."""
    inner_lr: float | None = None
    """Inner step size alpha; default: the method's own (0.1, but far less for sign_maml)."""
    hessian_data: Literal["fresh", "inner"] | None = None
    """D_h of maml and hf_maml: a fresh draw (default), or the inner step's again, which saves a third of the draws."""
    outer_options: tuple[str, ...] = ()
    """More options as name=value, as delta=published rho=0.5 (hf_maml), lam=2 (imaml), baseline=none (e_maml)."""
    anneal_iterations: int | None = None
    """Let the outer step size fall linearly to a tenth over so many iterations (default: all; 0: never)."""
    max_grad_norm: float | None = None
    """Clip the mean meta-gradient to this norm; default: no clipping."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ...; auto takes an accelerator where there is one."""
    seed: int = 0
    """Everything random follows from it."""
    eval_every: int = 10
    """Evaluate on held-out tasks every so many iterations."""
    eval_tasks: int = 20
    """Held-out tasks of the evaluations during training."""
    eval_seed: int = 1000
    """Seed of the held-out tasks."""
    save_every: int = 10
    """Write a checkpoint every so many iterations."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, such as one that registers your own outer update."""
    log_dir: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Where run folders are made."""
    name: str | None = None
    """Name of the run's folder; default: what is trained, update, seed and time."""


C = TypeVar("C", bound=RunConfig)

CHANGEABLE = ("iterations", "device", "eval_every", "eval_tasks", "eval_seed", "save_every", "plugins")
"""Settings that a resumed run may change, because the training they belong to stays the same."""


@dataclass(frozen=True)
class Run(Generic[C]):
    """A training run, checked and ready to go."""

    config: C
    learner: MetaLearner
    folder: Path


@dataclass(frozen=True)
class Recipe(Generic[C]):
    """What a script trains."""

    script: str  # as it is called, for messages
    config: type[C]
    build: Callable[[C], MetaLearner]  # the learner before training; checks every setting
    about: Callable[[C], str]  # what is trained on, for names and titles
    settle: Callable[[C], C] = lambda config: config  # fill in defaults that depend on other settings


def parsed(
    recipe: Recipe[C], arguments_class: type[Any], arguments: list[str] | None, description: str | None
) -> tuple[Any, Run[C]]:
    """The command line as `arguments_class` (the configuration and `resume`), and the run it asks for."""
    given = cli.parse(arguments_class, arguments, recipe.script, description)
    folder = given.resume
    if folder is None:
        return given, cli.prepared(lambda: fresh(recipe, settings_of(recipe, given)))
    saved = cli.prepared(lambda: saved_config(recipe, folder))
    # read again over the run's own settings: what then differs from them was really given
    own = arguments_class(**{**vars(saved), "resume": folder})
    given = cli.parse(arguments_class, arguments, recipe.script, description, default=own)
    return given, cli.prepared(lambda: resumed(recipe, folder, saved, settings_of(recipe, given)))


def settings_of(recipe: Recipe[C], given: Any) -> C:
    """The settings of a run without the arguments that only this call is about."""
    return recipe.config(**{field.name: getattr(given, field.name) for field in dataclasses.fields(recipe.config)})


def fresh(recipe: Recipe[C], config: C) -> Run[C]:
    """A new run; its folder is made last, when all settings have been checked.

    Raises:
        ValueError: naming the setting that cannot work, or the folder that exists.
    """
    config = recipe.settle(config)
    if config.anneal_iterations is None:  # settled now: a run that is resumed for longer keeps its schedule
        config = dataclasses.replace(config, anneal_iterations=config.iterations)
    learner = recipe.build(config)
    about = f"{recipe.about(config)}-{config.outer}-{config.seed}"
    name = config.name or f"{about}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = new_folder(config.log_dir, name)
    config = dataclasses.replace(config, name=name)
    write_json(folder / "config.json", to_json(config))
    learner.save(folder / "checkpoint.pt")
    return Run(config, learner, folder)


def new_folder(log_dir: Path, name: str) -> Path:
    """Make the folder `name` in `log_dir`.

    Raises:
        ValueError: when the name is not one, the folder exists, or it cannot be made.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be the name of a folder without a path, got {name!r}")
    folder = log_dir / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(f"{folder} exists; choose another --name, or go on with it: --resume {folder}") from None
    except OSError as error:
        raise ValueError(f"log_dir must be writable, got {log_dir} ({error.strerror})") from None
    return folder


def resumed(recipe: Recipe[C], folder: Path, saved: C, given: C) -> Run[C]:
    """The run in `folder`, whose settings are `saved`, at its last checkpoint, with those that are `given` now.

    Raises:
        ValueError: when the folder is not a run's, or a setting was given that a resumed run cannot change.
    """
    changes = {name: value for name, value in vars(given).items() if value != getattr(saved, name)}
    for name, value in changes.items():
        if name not in CHANGEABLE:
            kept = getattr(saved, name)
            raise ValueError(f"{name} cannot change when a run is resumed: it is {kept!r}, got {value!r}")
    run = load(recipe, folder, **changes)
    done, evaluated = run.learner.iterations, (folder / "evaluation.json").exists()
    if run.config.iterations < done or (run.config.iterations == done and evaluated):
        raise ValueError(f"iterations must be more than the {done} that {folder} has, got {run.config.iterations}")
    write_json(folder / "config.json", to_json(run.config))
    return run


def load(recipe: Recipe[C], folder: Path, **changes: Any) -> Run[C]:
    """The run in `folder` at its last checkpoint, with some settings changed.

    Raises:
        ValueError: when the folder is not a run's, or its checkpoint is missing, truncated or another run's.
    """
    config = dataclasses.replace(saved_config(recipe, folder), **changes)
    learner = recipe.build(config)
    learner.load_state_dict(checkpoint.load(folder / "checkpoint.pt"))
    return Run(config, learner, folder)


def saved_config(recipe: Recipe[C], folder: Path) -> C:
    """The configuration in the folder's `config.json`.

    Raises:
        ValueError: when it is not there, or is not one.
    """
    path = folder / "config.json"
    wanted = f"run must be the folder of a run of {recipe.script}; {path}"
    try:
        found = json.loads(path.read_text())
        fields = {field.name for field in dataclasses.fields(recipe.config)}
        if missing := fields - set(found):
            raise ValueError(f"it lacks {sorted(missing)}")
        if wrong := [name for name in lists(recipe.config) if not isinstance(found[name], list)]:
            raise ValueError(f"{wrong} must be lists")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in fields}
        return recipe.config(**{**settings, "log_dir": Path(settings["log_dir"])})
    except OSError as error:
        raise ValueError(f"{wanted} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{wanted} is not its configuration: {error}") from None


def lists(config: type[RunConfig]) -> list[str]:
    """The settings that are tuples, which JSON knows as lists."""
    return [name for name, hint in typing.get_type_hints(config).items() if typing.get_origin(hint) is tuple]


def learn(run: Run[C], before_log: Sequence[Callback], about: str, messages: TextIO | None = None) -> RunLog:
    """Train to the end with a log, a progress bar and checkpoints; `before_log` may add to what is logged.

    A signal that ended training ends the program here, with how to go on.
    """
    config, learner, folder = run.config, run.learner, run.folder
    print(
        f"{folder}: {config.outer} on {about}, {config.iterations - learner.iterations} iterations to go", file=messages
    )
    log = RunLog(folder, {"configuration": f"```json\n{json.dumps(to_json(config), indent=2)}\n```"})
    callbacks = [*before_log, log, ProgressBar(), Checkpointing(folder / "checkpoint.pt", config.save_every)]
    if learner.iterations < config.iterations:
        learner.learn(config.iterations - learner.iterations, callbacks)
    if learner.stopped_by is not None:
        where = f"saved after iteration {learner.iterations}; to go on: --resume {folder}"
        print(f"stopped by {learner.stopped_by}, {where}", file=messages)
        raise SystemExit(cli.SIGNAL_BASE + signal.Signals[learner.stopped_by])
    return log


def learner_arguments(config: RunConfig) -> dict[str, Any]:
    """Arguments of `MetaLearner` that every run has."""
    return {
        "outer": config.outer,
        "inner_lr": config.inner_lr,
        "inner_steps": config.inner_steps,
        "outer_options": parse_outer_options(config),
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


def check_shared(config: RunConfig) -> None:
    """Import the plug-ins and check what every run has, but what the learner checks itself.

    Raises:
        ValueError: naming the setting that cannot work.
    """
    import_plugins(config.plugins)
    for name in ("iterations", "eval_every", "eval_tasks", "save_every"):
        check_int(name, getattr(config, name))
    check_int("eval_seed", config.eval_seed, minimum=0)


def parse_outer_options(config: RunConfig) -> dict[str, Any]:
    """The options of the outer update from `hessian_data` and `outer_options`."""
    chosen: dict[str, Any] = {} if config.hessian_data is None else {"hessian_data": config.hessian_data}
    return {**chosen, **parse_options("outer_options", config.outer_options)}


def parse_options(argument: str, entries: Sequence[str]) -> dict[str, Any]:
    """`name=value` entries; a value is JSON where it can be, else a word.

    Raises:
        ValueError: an entry without `=`.
    """
    options = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"{argument} must be name=value, got {entry!r}")
        options[name] = _plain(value)
    return options


def _plain(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def step_sizes(learner: MetaLearner, steps: int, schedule: str) -> list[float]:
    """Inner step sizes at test time: `constant`, or `halved` after the steps that were trained (Finn et al., 2017)."""
    assert learner.inner_lr is not None  # scripts name their method
    trained = learner.method.inner.steps if schedule == "halved" else steps
    return [learner.inner_lr if step < trained else learner.inner_lr / 2 for step in range(steps)]


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration with what it ran on: versions, commit, device."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    return {**settings, "versions": versions(), "commit": commit(), "device_name": device_name(config.device)}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("metarl-torch", "torch", "gymnasium", "stable-baselines3", "numpy", "mujoco")
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
