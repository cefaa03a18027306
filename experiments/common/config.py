"""Settings that every training run has, and `config.json`: written with versions and device, read with checks."""

import dataclasses
import json
import platform
import subprocess
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import torch
import tyro

from metarl import MetaLearner
from metarl.devices import pick_device
from metarl.envs.own import module_of
from metarl.errors import check_int
from metarl.experiments.common import cli, options
from metarl.outer import builder
from metarl.partial import CONTEXT
from metarl.processes import ALONE, Processes, launch
from metarl.schedules import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of everything that is trained in iterations. A script adds its own, and builds a learner from them."""

    script: ClassVar[str]
    """The command, for messages."""
    added: ClassVar[Mapping[str, Any]] = types.MappingProxyType({"anneal": "linear", "track": []})
    """Settings that older versions did not write, with the values they trained with."""

    iterations: int = 150
    """Iterations in total."""
    anneal_iterations: int | None = None
    """Anneal the outer step size to a tenth over this many iterations. Default: all. 0: no annealing."""
    anneal: Literal["linear", "cosine"] = "linear"
    """Shape of the annealing: linear, or half a period of a cosine."""
    device: str = "cpu"
    """Device: cpu, cuda, cuda:1, ... auto takes an accelerator if there is one."""
    seed: int = 0
    """Seed of all randomness in training."""
    eval_every: int = 10
    """Evaluate on held-out tasks every this many iterations."""
    eval_tasks: int = 20
    """Held-out tasks of each evaluation during training."""
    eval_seed: int = 1000
    """Seed of the held-out tasks."""
    save_every: int = 10
    """Save a checkpoint every this many iterations."""
    track: tuple[str, ...] = ()
    """Trackers that get the metrics, too: wandb, or your own as module:Class (docs/callbacks.md)."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update."""
    log_dir: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Parent folder of run folders."""
    name: str | None = None
    """Name of the run folder. Default: environment or problem, update, seed and time. Required under torchrun."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Resume the run in this folder and train up to --iterations. Most other settings must stay as they are."""

    @property
    def algorithm(self) -> str:
        """The name of what is trained, for names and titles."""
        raise NotImplementedError

    @property
    def about(self) -> str:
        """The environment or problem, for names and titles."""
        raise NotImplementedError

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of a user's that the run imports: plug-ins, and that of an own task distribution."""
        own = module_of(getattr(self, "env", ""))
        return self.plugins if own is None else (*self.plugins, own)

    def settle(self) -> Self:
        """The same with all defaults filled in that depend on other settings."""
        return self

    def build_learner(self, processes: Processes = ALONE) -> MetaLearner:
        """The learner before training. Checks every setting.

        Raises:
            ValueError: naming the setting that cannot work.
        """
        raise NotImplementedError

    @classmethod
    def parse(
        cls, arguments: Sequence[str], description: str | None, processes: Processes, saved: Self | None = None
    ) -> Self:
        """The settings on the command line; a resumed run's `saved` settings are the defaults."""
        kind = cls if saved is None else type(saved)
        return cli.parse(kind, arguments, cls.script, description, saved, processes)

    @classmethod
    def choose_kind(cls, found: Mapping[str, Any]) -> type[Self]:
        """The class for the contents of a `config.json`."""
        return cls


@dataclass(frozen=True, kw_only=True)
class RunConfig(LoopConfig):
    """Settings of every run of an outer update."""

    added: ClassVar[Mapping[str, Any]] = types.MappingProxyType(
        {**LoopConfig.added, "learn_inner_lr": None, "inner_lr_rate": None, "adapt": [], "step_options": []}
    )

    outer: str = "maml"
    """Outer update: maml, fo_maml, hf_maml, ggs_maml, multi_step_maml, binom_maml, maml_plus_plus, e_maml, lsf,
    sign_maml, moreau, reptile, imaml, es_maml, multitask, bmaml, or your own."""
    inner_steps: int | None = None
    """Inner steps N. Default: the method's (1; 3 for multi_step_maml, binom_maml, moreau, reptile; 5 for
    maml_plus_plus, imaml)."""
    inner_lr: float | None = None
    """Inner step size alpha. Default: the method's (0.1; much smaller for sign_maml and es_maml)."""
    hessian_data: Literal["fresh", "reuse"] | None = None
    """D_h of maml, maml_plus_plus, hf_maml, ggs_maml, binom_maml: a fresh draw, or reuse the inner batch, which saves
    draws. Default: fresh; reuse with the outer steps trust_region and proximal."""
    learn_inner_lr: Literal["scalar", "layer", "parameter", "layer-step"] | None = None
    """Learn alpha (maml, fo_maml, hf_maml, multi_step_maml): one, or one per layer, parameter, or layer and step, which
    is the default of maml_plus_plus."""
    inner_lr_rate: float | None = None
    """Outer step size of learned inner step sizes. Default: that of the parameters times the first inner step size."""
    adapt: tuple[str, ...] = ()
    """Parameters that inner steps move: head (the last layer), context, or patterns of names such as *log_std. Not for
    reptile. Default: all; the context with --context-size."""
    outer_options: tuple[str, ...] = ()
    """Other options of the update, as name=value: delta=published (hf_maml), lam=2 (imaml), baseline=none (e_maml),
    order=2 (binom_maml), directions=10 (ggs_maml), temperature=0.1 (bmaml)."""
    step_options: tuple[str, ...] = ()
    """Options of the outer step as name=value: hyper_lr_alpha=1e-4, hyper_lr_beta=1e-4, floor=0 or none (alpha_maml);
    epochs=5, clip=0.3 or none, kl_coefficient=5e-4, adaptive_kl=0.01, target_kl=0.05 (proximal);
    max_kl=0.01, cg_iterations=10, damping=1e-5, jacobian=identity, every=4 (trust_region)."""
    max_grad_norm: float | None = None
    """Clip the mean meta-gradient to this norm. Default: no clipping."""

    @property
    def algorithm(self) -> str:
        """The outer update."""
        return self.outer


C = TypeVar("C", bound=LoopConfig)

NOT_SETTINGS = ("resume", "json", "find_inner_lr")
"""Options of one call, which are not part of a run."""


def settings(config: LoopConfig) -> dict[str, Any]:
    """The settings that a run keeps, by name."""
    return {name: value for name, value in vars(config).items() if name not in NOT_SETTINGS}


# What the scripts build from these settings.


def learner_arguments(config: RunConfig, processes: Processes) -> dict[str, Any]:
    """Arguments of `MetaLearner` that follow from the settings of every run. Imports the plug-ins first.

    Raises:
        ValueError: naming the setting that cannot work, unless the learner itself checks it.
    """
    cli.import_plugins(config.plugins)
    for name in ("iterations", "eval_every", "eval_tasks", "save_every"):
        check_int(name, getattr(config, name))
    check_int("eval_seed", config.eval_seed, minimum=0)
    annealed = config.anneal_iterations and check_int("anneal_iterations", config.anneal_iterations, minimum=0)
    return {
        "outer": config.outer,
        "inner_lr": config.inner_lr,
        "inner_steps": config.inner_steps,
        "adapt": read_adapt(config),
        "outer_options": read_outer_options(config),
        "max_grad_norm": config.max_grad_norm,
        "inner_lr_rate": config.inner_lr_rate,
        "schedule": SCHEDULES[config.anneal](annealed) if annealed else None,
        "seed": config.seed,
        "processes": processes,
    }


def read_adapt(config: object) -> tuple[str, ...] | None:
    """The patterns of `adapt`: those given, the context of a network that has one, or `None` for all parameters."""
    given: tuple[str, ...] = getattr(config, "adapt", ())
    return given or ((CONTEXT,) if getattr(config, "context_size", 0) else None)


def read_outer_options(config: RunConfig) -> dict[str, Any]:
    """Options of the outer update, from `hessian_data`, `learn_inner_lr` and `outer_options`."""
    names = ("hessian_data", "learn_inner_lr")
    chosen = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    given = options.read("outer_options", config.outer_options, builder(config.outer))
    if twice := sorted(set(chosen) & set(given)):
        raise ValueError(f"outer_options must not have {twice}, which is given as --{twice[0].replace('_', '-')}")
    return {**chosen, **given}


# config.json


def read_config(kind: type[C], folder: Path) -> C:
    """The settings in the folder's `config.json`.

    Raises:
        ValueError: when the file is missing, or is not a configuration of this script.
    """
    path = folder / "config.json"
    wanted = f"run must be the folder of a run of {kind.script}; {path}"
    try:
        found = read_object(path)
    except OSError as error:
        raise ValueError(f"{wanted} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{wanted} is not its configuration: {error}") from None
    return parse_config(kind, found, wanted)


def parse_config(kind: type[C], found: dict[str, Any], wanted: str) -> C:
    """The settings in the contents of a `config.json`.

    Raises:
        ValueError: when they are not a configuration of this script; the message begins with `wanted`.
    """
    try:
        own = kind.choose_kind(found)
        found = {**own.added, **found}
        hints = typing.get_type_hints(own, include_extras=True)
        names = [field.name for field in dataclasses.fields(own) if field.name not in NOT_SETTINGS]
        if missing := set(names) - set(found):
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(f"it lacks {', '.join(sorted(missing)[:3])}{more}")
        return own(**{name: from_json(name, found[name], hints[name]) for name in names})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{wanted} is not its configuration: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: when the file holds something else.
        OSError: when it cannot be read.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it must be a JSON object, got {found!r:.60}")
    return found


def read_if_whole(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or nothing if there is no such file or it holds something else."""
    try:
        return read_object(path)
    except (OSError, ValueError, RecursionError):
        return None


def from_json(name: str, value: object, hint: Any) -> Any:
    """`value` as the type of the setting: lists become tuples, strings become paths.

    Raises:
        ValueError: naming the setting, what was wanted and what was found.
    """
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return from_json(name, value, members[0])
    if origin in (typing.Union, types.UnionType):
        for member in members:
            try:
                return from_json(name, value, member)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, list) and (members[-1] is ... or len(members) == len(value)):
        return tuple(from_json(name, entry, members[0]) for entry in value)
    elif origin is Literal and value in members and isinstance(value, str):
        return value
    elif hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    elif hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(f"{name} must be {_describe(hint)}, got {value!r:.60}")


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {list(typing.get_args(hint))}"
    return "a path" if hint is Path else options.describe(hint)


def to_json(config: LoopConfig, processes: Processes) -> dict[str, Any]:
    """The settings with versions, commit, device, number of processes and their launch."""
    return {**describe_setup(config), "processes": processes.size, "launch": launch()}


def describe_setup(config: Any) -> dict[str, Any]:
    """The arguments of any script, which has a `device`, with versions, commit and the device's name, for JSON."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items() if k not in NOT_SETTINGS}
    return {**plain, "versions": versions(), "commit": commit(), "device_name": device_name(config.device)}


# What was changed when a run was resumed.

CHANGES = "changes"
"""The key in `config.json`: a list with a dictionary for each time."""

OF_LEARNER = {"learning_rate": "learning_rate", "schedule": "anneal_iterations"}
"""Arguments of the learner, and the settings they come from."""


def read_changes(folder: Path) -> list[dict[str, Any]]:
    """The changes so far, with `from` and `to` of each setting; often empty.

    Raises:
        ValueError: when `config.json` has something else there.
    """
    found = read_object(folder / "config.json").get(CHANGES, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"run must be the folder of a run; {folder}/config.json has no list of {CHANGES}")
    return found


def add_changes(folder: Path, changed: Mapping[str, tuple[Any, Any]], iteration: int) -> dict[str, Any]:
    """All changes of the outer step size, those made now included, as an entry of `config.json`."""
    entry = {name: {"from": old, "to": new} for name, (old, new) in changed.items() if name in OF_LEARNER.values()}
    found = [*read_changes(folder), *([{"after_iteration": iteration, **entry}] if entry else [])]
    return {CHANGES: found} if found else {}


def may_differ(folder: Path, changed: Mapping[str, object]) -> set[str]:
    """Learner arguments that may differ from the last checkpoint's: those changed now, or by an earlier resume.

    Raises:
        ValueError: when `config.json` cannot be read.
    """
    names = {name for entry in read_changes(folder) for name in entry} | set(changed)
    return {argument for argument, name in OF_LEARNER.items() if name in names}


# What a run depends on.


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    packages = ("metarl-torch", "torch", "gymnasium", "stable-baselines3", "numpy", "mujoco")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "not installed"


def commit() -> str | None:
    """The commit of the source tree that runs, or nothing outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(name: str) -> str:
    """The device's name; on the CPU with the number of threads."""
    device = pick_device(name)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
