"""Task distributions of your own, by name: `module:object` on a command line, or registered by a plug-in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from metarl.envs.base import EnvDistribution
from metarl.errors import did_you_mean

WANTED = "a metarl.envs.EnvDistribution (GymDistribution makes one of any Gymnasium environment), its class, or a"
WANTED += " function that makes one"


def module_of(name: str) -> str | None:
    """The module that `module:object` names, or `None` for a registered name."""
    module, colon, _ = name.partition(":")
    return module if colon else None


def find_own(name: str) -> Callable[..., EnvDistribution]:
    """What makes the task distribution that `module:object` names: a class, a function, or an instance as it is.

    The module is imported, so it is trusted.

    Raises:
        ValueError: the module cannot be imported, has no such object, or the object makes no task distribution.

    >>> find_own("metarl.envs:Navigation")().horizon
    100
    """
    module, _, path = name.partition(":")
    wanted = f"env must be module:object, such as my_envs:Pendulums, got {name!r}"
    try:
        found: Any = importlib.import_module(module)
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{wanted}: the module {module!r} cannot be imported ({error})") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{wanted}: {module} has no {part!r}{did_you_mean(part, vars(found))}")
        found = getattr(found, part)
    if isinstance(found, EnvDistribution):
        return _give(found)
    if not callable(found) or (isinstance(found, type) and not issubclass(found, EnvDistribution)):
        raise ValueError(f"{name} must be {WANTED}, got {found!r}")
    made: Callable[..., EnvDistribution] = found
    return made


def _give(instance: EnvDistribution) -> Callable[[], EnvDistribution]:
    def give() -> EnvDistribution:
        return instance

    return give


def check_made(name: str, made: object) -> EnvDistribution:
    """`made` by the constructor called `name`, if it is a task distribution; a `ValueError` otherwise."""
    if not isinstance(made, EnvDistribution):
        raise ValueError(f"env {name!r} must be {WANTED}, got {made!r}")
    return made
