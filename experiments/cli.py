"""What the scripts share on the command line: arguments from a dataclass, one-line errors, exit codes."""

import importlib
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from metarl import MetaLearner, NonFiniteError
from metarl.callbacks import Callback
from metarl.devices import pick_device as pick_device
from metarl.distributed import ALONE, Processes, joined

Config = TypeVar("Config")

FAILED, BAD_INPUT = 1, 2
SIGNAL_BASE = 128  # a shell's exit code of a program ended by signal n is 128 + n


def parse(
    config: type[Config],
    arguments: list[str] | None,
    script: str,
    description: str | None,
    default: Config | None = None,
    processes: Processes = ALONE,
) -> Config:
    """The arguments as `config`, over `default` where it is given; a wrong one is one line and exit code 2."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    markers = (tyro.conf.FlagCreatePairsOff,)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parsed: Config = tyro.cli(
                config, args=arguments, prog=f"python -m {script}", description=description, config=markers, **given
            )
            return parsed
    except SystemExit as end:
        if end.code != BAD_INPUT:
            raise
    _refuse(_one_line(said.getvalue()), processes)


def _one_line(box: str) -> str:
    """What the argument parser drew as a box with a title and a help text, as one sentence."""
    lines = [line.strip("│| ") for line in box.splitlines() if not re.search("[─-]{4}", line)]  # no borders, no title
    text = " ".join(line for line in lines if line)
    text = re.split(r"\s*(?:Argument helptext:|For full helptext)", text)[0].strip()
    return re.sub(r"^[A-Z][a-z]+ [a-z]+ (?=[A-Z])", "", text).removeprefix("Error ")  # a title drawn without a border


def prepared(prepare: Callable[[], Config], processes: Processes = ALONE) -> Config:
    """`prepare()`; its `ValueError` becomes one line and exit code 2. To be called before anything is written.

    With several processes, it must be the same `ValueError` in all (see `Processes.together`).
    """
    try:
        return prepare()
    except ValueError as error:
        _refuse(error, processes)


def _refuse(error: object, processes: Processes) -> NoReturn:
    if processes.is_first:
        print(f"error: {error}", file=sys.stderr)
    processes.gather_objects(None)  # the first one that leaves takes the others with it: not before the line is out
    raise SystemExit(BAD_INPUT)


@contextmanager
def together() -> Iterator[Processes]:
    """The processes torchrun has started, or this one alone; only the first one prints and warns."""
    with ExitStack() as stack:
        with one_line_errors():
            processes = prepared(lambda: stack.enter_context(joined()))
        if not processes.is_first:
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            stack.callback(logging.disable, logging.NOTSET)
        yield processes


@contextmanager
def one_line_errors(hint: str = "", processes: Processes = ALONE) -> Iterator[None]:
    """End the program with one line, and `hint`, at a NaN, when another process has ended (1), or at Ctrl-C (130).

    What happened to all processes, the first one says.
    """
    try:
        yield
    except NonFiniteError as error:
        fail(f"{error}{hint}", FAILED, silent=error.task is None and not processes.is_first)
    except ConnectionError as error:
        fail(f"{error}{hint}", FAILED, silent=not processes.is_first)
    except KeyboardInterrupt:
        fail(f"interrupted{hint}", SIGNAL_BASE + signal.SIGINT, silent=not processes.is_first)


def fail(error: object, code: int, *, silent: bool = False) -> NoReturn:
    """Print one line to stderr and exit."""
    if not silent:
        print(f"error: {error}", file=sys.stderr)
    raise SystemExit(code)


def learn(learner: MetaLearner, iterations: int, callbacks: Iterable[Callback] = ()) -> None:
    """Train; a signal, at which the learner only ends its run early, ends the program: what follows wants all of it."""
    learner.learn(iterations, callbacks)
    if learner.stopped_by is not None:
        fail(f"stopped by {learner.stopped_by}", SIGNAL_BASE + signal.Signals[learner.stopped_by])


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules that register outer updates or environments.

    Raises:
        ValueError: when one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, SyntaxError, TypeError) as error:
            raise ValueError(f"plugins must be importable modules, but {module!r} is not: {error}") from error
