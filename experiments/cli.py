"""What the scripts share on the command line: arguments from a dataclass, one-line errors, exit codes."""

import importlib
import io
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, NoReturn, TypeVar

import torch
import tyro

from metarl import MetaLearner, NonFiniteError
from metarl.callbacks import Callback

Config = TypeVar("Config")

FAILED, BAD_INPUT = 1, 2
SIGNAL_BASE = 128  # a shell's exit code of a program ended by signal n is 128 + n


def parse(
    config: type[Config],
    arguments: list[str] | None,
    script: str,
    description: str | None,
    default: Config | None = None,
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
    fail(_one_line(said.getvalue()), BAD_INPUT)


def _one_line(box: str) -> str:
    """What the argument parser drew as a box with a title and a help text, as one sentence."""
    lines = [line.strip("│| ") for line in box.splitlines() if not re.search("[─-]{4}", line)]  # no borders, no title
    text = " ".join(line for line in lines if line)
    text = re.split(r"\s*(?:Argument helptext:|For full helptext)", text)[0].strip()
    return re.sub(r"^[A-Z][a-z]+ [a-z]+ (?=[A-Z])", "", text).removeprefix("Error ")  # a title drawn without a border


def prepared(prepare: Callable[[], Config]) -> Config:
    """`prepare()`; its `ValueError` becomes one line and exit code 2. To be called before anything is written."""
    try:
        return prepare()
    except ValueError as error:
        fail(error, BAD_INPUT)


@contextmanager
def one_line_errors(hint: str = "") -> Iterator[None]:
    """End the program with one line, and `hint`, at a NaN (exit code 1) or at Ctrl-C (130)."""
    try:
        yield
    except NonFiniteError as error:
        fail(f"{error}{hint}", FAILED)
    except KeyboardInterrupt:
        fail(f"interrupted{hint}", SIGNAL_BASE + signal.SIGINT)


def fail(error: object, code: int) -> NoReturn:
    """Print one line to stderr and exit."""
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


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is an accelerator where there is one, else the CPU.

    Raises:
        ValueError: for a device that torch does not know, or that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(f"device must be 'auto', 'cpu' or one that is there, got {name!r} ({reason})") from None
    if device.type == "meta":
        raise ValueError("device must be one that computes, got 'meta'")
    return device
