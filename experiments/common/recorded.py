"""A run's `config.json`: its settings with what they ran on, written, and read back without trusting it."""

import dataclasses
import json
import platform
import subprocess
import types
import typing
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from metarl.experiments.common.cli import pick_device
from metarl.experiments.common.options import described
from metarl.processes import Processes, launch

if TYPE_CHECKING:
    from metarl.experiments.common.run import Recipe, RunConfig

C = TypeVar("C", bound="RunConfig")

CHANGES = "changes"
"""In `config.json`: what was changed when the run was resumed, a dictionary for each time."""


def saved_config(recipe: "Recipe[C]", folder: Path) -> C:
    """The configuration in the folder's `config.json`.

    Raises:
        ValueError: when it is not there, or is not one.
    """
    path = folder / "config.json"
    wanted = f"run must be the folder of a run of {recipe.script}; {path}"
    try:
        found = {**recipe.added, **read_object(path)}
        hints = typing.get_type_hints(recipe.config, include_extras=True)
        if missing := set(hints) - set(found):
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(f"it lacks {', '.join(sorted(missing)[:3])}{more}")
        return recipe.config(**{name: from_json(name, found[name], hint) for name, hint in hints.items()})
    except OSError as error:
        raise ValueError(f"{wanted} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{wanted} is not its configuration: {error}") from None


def changes(folder: Path) -> list[dict[str, Any]]:
    """What was changed when the run was resumed, with `from` and `to` of each setting; nothing in most runs.

    Raises:
        ValueError: when `config.json` has something else there.
    """
    found = read_object(folder / "config.json").get(CHANGES, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"run must be the folder of a run; {folder}/config.json has no list of {CHANGES}")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: when it holds something else.
        OSError: when it cannot be read.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it must be a JSON object, found {found!r:.60}")
    return found


def from_json(name: str, value: object, hint: Any) -> Any:
    """`value` as the type of the setting: lists become tuples, texts become paths.

    Raises:
        ValueError: naming the setting, what was wanted and what was found.
    """
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return from_json(name, value, members[0])
    if origin in (typing.Union, types.UnionType):
        for member in members:
            try:
                return from_json(name, value, member)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, list):
        return tuple(from_json(name, entry, members[0]) for entry in value)
    elif origin is Literal and value in members and isinstance(value, str):
        return value
    elif hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    elif hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise ValueError(f"{name} must be {_wanted(hint)}, found {value!r:.60}")


def _wanted(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {list(typing.get_args(hint))}"
    return "a path" if hint is Path else described(hint)


def tolerated(folder: Path, now: Mapping[str, object]) -> set[str]:
    """What may differ between the settings of the run and its last checkpoint: what is changed `now`, or was before.

    Raises:
        ValueError: when `config.json` cannot be read.
    """
    names = {name for entry in changes(folder) for name in entry} | set(now)
    return {argument for argument, name in OF_LEARNER.items() if name in names}


OF_LEARNER = {"learning_rate": "learning_rate", "schedule": "anneal_iterations"}
"""Arguments of the learner, and the settings that they come from."""


def changes_with(folder: Path, changed: Mapping[str, tuple[Any, Any]], iteration: int) -> dict[str, Any]:
    """The run's changes, and those of its outer step size that are made now, as an entry of `config.json`."""
    entry = {
        name: {"from": before, "to": now} for name, (before, now) in changed.items() if name in OF_LEARNER.values()
    }
    found = [*changes(folder), *([{"after_iteration": iteration, **entry}] if entry else [])]
    return {CHANGES: found} if found else {}


def to_json(config: "RunConfig", processes: Processes) -> dict[str, Any]:
    """The configuration with what it ran on: versions, commit, device, the processes and who launched them."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    ran_on = {"versions": versions(), "commit": commit(), "device_name": device_name(config.device)}
    return {**settings, **ran_on, "processes": processes.size, "launch": launch()}


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
