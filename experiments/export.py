"""Pack a finished run into one file: weights, settings, adaptation curve, pictures and a card.

    metarl export runs/nav policy.zip

`metarl.load("policy.zip")` opens it on another machine, checks every part, and executes nothing in it. A name that does
not end in `.zip` makes a folder with the same files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl.experiments.common import cli, opening


@dataclass(frozen=True)
class Arguments:
    """Settings of an export."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished run."""
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACKAGE")]
    """The new file, such as policy.zip, or a new folder."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, for example one that registers your own outer update."""


@cli.one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the script."""
    given = cli.parse(Arguments, arguments, "metarl export", __doc__)

    def export() -> None:
        cli.import_plugins(given.plugins)
        opening.export(given.run, given.path, given.plugins)

    cli.prepare(export)
    print(f'{given.path}: open it with metarl.load("{given.path}")')


if __name__ == "__main__":
    main()
