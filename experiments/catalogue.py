"""List the names that settings take, one line each.

    metarl list envs
    metarl list updates --plugins my_updates

With `--plugins` the names that your own modules register are there, too.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from metarl.envs import ENVS, constructor
from metarl.experiments.common import cli
from metarl.experiments.common.outer_steps import OPTIMIZERS, STEPS
from metarl.outer import OUTER
from metarl.rl import SURROGATES

Kind = Literal["envs", "updates", "steps", "surrogates"]


@dataclass(frozen=True)
class Arguments:
    """What to list."""

    kind: Annotated[Kind, tyro.conf.Positional]
    """envs: --env; updates: --outer; steps: --outer-step; surrogates: --surrogate."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update or environment."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl list", __doc__)
    cli.prepare(lambda: cli.import_plugins(given.plugins))
    found = describe_all(given.kind)
    width = max(map(len, found))
    for name, line in found.items():
        print(f"{name:{width}}  {line}")


def describe_all(kind: Kind) -> dict[str, str]:
    """A line for each name."""
    if kind == "envs":
        return {name: _describe_env(name) for name in ENVS}
    tables: Mapping[str, Mapping[str, Any]] = {
        "updates": OUTER,
        "steps": {**OPTIMIZERS, **{name: step.kind for name, step in STEPS.items()}},
        "surrogates": SURROGATES,
    }
    return {name: first_sentence(found) for name, found in tables[kind].items()}


def _describe_env(name: str) -> str:
    try:
        make: Callable[..., Any] = constructor(name)
    except ValueError as error:  # without MuJoCo
        return str(error)
    own = getattr(make, "keywords", {})  # of a partial
    options = f" ({', '.join(f'{key}={value}' for key, value in own.items())})" if own else ""
    return f"{first_sentence(getattr(make, 'func', make))}{options}"


def first_sentence(thing: object) -> str:
    """The first sentence of its docstring, without the full stop."""
    paragraph = (inspect.getdoc(thing) or "no docstring").split("\n\n")[0]
    return re.split(r"\.(?= [A-Z`]|$)", " ".join(paragraph.split()))[0].removesuffix(":")


if __name__ == "__main__":
    main()
